"""The procedural painter behind the `street_scenes` data set.

`paint.paint_scene` turns a seed, a split, an index and a size into an image and its train ids. A
scene is drawn in three steps: `layout` samples what stands where, in metres; `camera` and `canvas`
project and fill shapes; each of the other modules paints one kind of thing, far to near.
"""
