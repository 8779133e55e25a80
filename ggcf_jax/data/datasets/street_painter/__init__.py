"""The procedural painter behind the `street_scenes` data set.

`paint.paint_scene` turns (seed, split, index) and a size into an image and its train ids.
One scene is drawn in three steps: `layout` samples what stands where in metres, `canvas` and
`camera` project it, and the other modules each paint one kind of thing, far to near.
"""
