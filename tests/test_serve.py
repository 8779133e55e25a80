"""The server over real HTTP, with a model that needs no time; then the page in a real browser."""

import base64
import contextlib
import dataclasses
import http.client
import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from ggcf_jax.data.datasets.street_painter import paint
from ggcf_jax.display import pictures
from ggcf_jax.evaluation import inference
from ggcf_jax.prediction import video
from ggcf_jax.serving import examples, viewer
from ggcf_jax.serving.answers import Answers, Refused
from ggcf_jax.serving.examples import Example
from ggcf_jax.serving.server import Server
from ggcf_jax.serving.viewer import Viewer
from ggcf_jax.workdir import config as workdir_config
from ggcf_jax.workdir import model as model_lib
from tests import browser
from tests.helpers import ROOT, one_device

COLORS = ((10, 20, 30), (40, 50, 60), (70, 80, 90))


def _segment(image):
    """Class 1 where there is more green than red, class 2 where it is black."""
    labels = (image[..., 1] > image[..., 0]).astype(np.uint8)
    labels[~image.any(-1)] = 2
    return labels


def _attend(image, pixel):
    """Two heads: everything on the query's own position; the same on all."""
    weights = np.zeros((2, -(-image.shape[0] // 4), -(-image.shape[1] // 4)), np.float32)
    weights[0, pixel[0] // 4, pixel[1] // 4] = 1
    weights[1] = 1 / weights[1].size
    return weights


VIEWER = Viewer(
    name='colours',
    classes=('red', 'green', 'black'),
    colors=COLORS,
    heads=('local:1', 'full'),
    stride=4,
    first=1.5,
    step=7,
    plan='whole image',
    segment=_segment,
    attend=_attend,
    examples=(Example('street', b'bytes of a PNG', (9, 14)),),
)


@contextlib.contextmanager
def serving(viewer=VIEWER, names=(), **limits):
    """A server in a thread, on a free port; yields its port, ends when all is answered."""
    server = Server(Answers(viewer, **limits), '127.0.0.1', 0, names)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.finish(30)
        server.server_close()


def ask(port, method, path, body=None, **headers):
    """(status, headers, body) of one request."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def post(port, path, body, **headers):
    """(status, content) of a POST."""
    status, _, content = ask(port, 'POST', path, body, **headers)
    return status, json.loads(content)


def encode(image, kind='PNG', mode='RGB', **options):
    """The bytes of an image file."""
    content = io.BytesIO()
    Image.fromarray(image).convert(mode).save(content, kind, **options)
    return content.getvalue()


def decode(url):
    """The picture in a PNG data URL, RGB or RGBA."""
    prefix, _, data = url.partition(',')
    assert prefix == 'data:image/png;base64'
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.fixture(scope='module')
def port():
    with serving(max_bytes=20_000, max_pixels=5000) as number:
        yield number


@pytest.fixture
def picture(rng):
    image = rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)
    image[:2] = 0
    return image


def test_page_and_model(port):
    status, headers, page = ask(port, 'GET', '/')
    assert status == 200 and headers['Content-Type'].startswith('text/html')
    assert b'://' not in page  # nothing from elsewhere
    assert "default-src 'none'" in headers['Content-Security-Policy']
    status, _, content = ask(port, 'GET', '/model')
    about = json.loads(content)
    assert status == 200 and about['classes'] == ['red', 'green', 'black']
    assert about['heads'] == ['local:1', 'full'] and about['max_pixels'] == 5000
    assert ask(port, 'GET', '/other')[0] == ask(port, 'POST', '/', b'')[0] == 404
    assert about['examples'] == ['street']
    status, headers, content = ask(port, 'GET', '/examples/0')
    assert (status, headers['Content-Type'], content) == (200, 'image/png', b'bytes of a PNG')
    assert ask(port, 'GET', '/examples/1')[0] == 404


def test_classes_of_an_image(port, picture):
    status, found = post(port, '/segment', encode(picture))
    labels = _segment(picture)
    assert status == 200 and (found['height'], found['width']) == (9, 14)
    np.testing.assert_array_equal(decode(found['image']), picture)
    np.testing.assert_array_equal(decode(found['overlay']), np.asarray(COLORS, np.uint8)[labels])
    np.testing.assert_allclose(found['shares'], [(labels == i).mean() for i in range(3)])
    data = io.BytesIO(base64.b64decode(found['labels'].partition(',')[2]))
    palette = Image.open(data)
    np.testing.assert_array_equal(np.asarray(palette), labels)
    np.testing.assert_array_equal(np.asarray(palette.convert('RGB')), decode(found['overlay']))


def test_attention_of_a_pixel(port, picture):
    _, image = post(port, '/segment', encode(picture))
    query = {'id': image['id'], 'y': 6, 'x': 13}
    status, found = post(port, '/attention', json.dumps(query))
    assert status == 200 and found['label'] == _segment(picture)[6, 13]
    # Position i is the middle of the square around pixel 4 i: 3 x 4 squares.
    assert found['box'] == [-0.5, -0.5, 16, 12]
    assert [head['graph'] for head in found['heads']] == ['local:1', 'full']
    own, all_equal = (decode(head['heat']) for head in found['heads'])
    assert own.shape == (3, 4, 4) and np.argwhere(own[..., 3]).tolist() == [[1, 3]]
    assert (all_equal[..., 3] == 255).all()
    assert found['heads'][1]['largest'] == pytest.approx(1 / 12)


@pytest.mark.parametrize(
    ('change', 'status', 'words'),
    [
        ({'y': 9}, 400, 'lies outside of the image of 9 x 14'),
        ({'x': -1}, 400, 'lies outside'),
        ({'y': 'a'}, 400, 'A query is'),
        ({'y': 1.5}, 400, 'A query is'),
        ({'y': True}, 400, 'A query is'),
        ({'id': 'other'}, 410, 'send it again'),
    ],
)
def test_bad_queries(port, picture, change, status, words):
    _, image = post(port, '/segment', encode(picture))
    query = {'id': image['id'], 'y': 0, 'x': 0} | change
    found = post(port, '/attention', json.dumps(query))
    assert found[0] == status and words in found[1]['error']


def test_only_the_latest_images_are_kept(port, picture):
    names = [post(port, '/segment', encode(picture))[1]['id'] for _ in range(9)]
    found = [post(port, '/attention', json.dumps({'id': n, 'y': 0, 'x': 0}))[0] for n in names]
    assert found == [410] + [200] * 8


def test_queries_that_are_no_json(port):
    deep = b'{"id":' + b'[' * 900 + b']' * 900 + b'}'
    for body in (b'{', b'[]', b'3', b'\xff', b' ' * 2000, deep):
        status, found = post(port, '/attention', body)
        assert status in (400, 413) and found['error']


def _promises_much():
    """A PNG of 100,000 x 100,000 pixels by its header, which its 69 bytes cannot hold."""
    content = bytearray(encode(np.zeros((1, 1, 3), np.uint8)))
    content[16:24] = (100_000).to_bytes(4, 'big') * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, 'big')
    return bytes(content)


@pytest.mark.parametrize(
    ('content', 'status', 'words'),
    [
        (b'', 400, 'The file is empty.'),
        (b'Not an image at all.', 415, 'no image, or one of another format; supported are PNG'),
        (encode(np.full((40, 40, 3), 9, np.uint8))[:-20], 415, 'is the file damaged?'),
        (encode(np.full((40, 40, 3), 9, np.uint8))[:30], 415, 'breaks off after 30 bytes'),
        (_promises_much(), 415, 'cannot hold 100000 x 100000'),
        (encode(np.zeros((1500, 1500, 3), np.uint8)), 413, '1500 x 1500 pixels, more than the 5,0'),
        (encode(np.zeros((3000, 3000, 3), np.uint8), 'WEBP', lossless=True), 413, '3000 x 3000 pi'),
        (encode(np.zeros((2048, 2048, 3), np.uint8), 'AVIF'), 415, "a file of type 'avif'"),
        (encode(np.zeros((64, 64, 3), np.uint8), 'TGA'), 415, 'no image, or one of another format'),
        (encode(np.zeros((100, 51, 3), np.uint8)), 413, '100 x 51 pixels, more than the 5,000'),
        (bytes(20_001), 413, 'The file is too large: 20,001 bytes, more than 20,000.'),
        (bytes(60_000), 413, 'The file is too large'),
    ],
    ids=[
        'empty', 'text', 'cut off', 'header', 'header says much', 'PNG bomb', 'WebP bomb', 'AVIF',
        'TGA', 'pixels', 'bytes', 'many bytes',
    ],
)  # fmt: skip
def test_bad_uploads(port, content, status, words):
    found = post(port, '/segment', content)
    assert found[0] == status and words in found[1]['error']


def _clip(path, frames, size=(12, 16), codec='MJPG'):
    """The bytes of a video: red, and the left half green."""
    picture = np.zeros((*size, 3), np.uint8)
    picture[..., 2] = 200
    picture[:, : size[1] // 2] = (0, 200, 0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 5.0, size[::-1])
    for _ in range(frames):
        writer.write(picture)
    writer.release()
    return path.read_bytes()


@pytest.mark.parametrize(('name', 'codec'), [('a.avi', 'MJPG'), ('a.mp4', 'mp4v')])
def test_a_short_video_is_overlaid(port, tmp_path, name, codec):
    sent = _clip(tmp_path / name, 7, codec=codec)
    status, headers, content = ask(port, 'POST', '/clip', sent)
    assert (status, headers['Content-Type']) == (200, 'video/mp4')
    assert (headers['Frames'], headers['Lost-Frames']) == ('7', '0')
    (tmp_path / 'out.mp4').write_bytes(content)
    reader = video.Reader(tmp_path / 'out.mp4')
    frames = reader.frames(100)
    assert (len(frames), reader.rate, reader.size) == (7, 5.0, (12, 16))
    # Half of the picture, half of the class's colour.
    np.testing.assert_allclose(frames[0][6, 3], (20, 125, 30), atol=30)
    np.testing.assert_allclose(frames[0][6, 12], (105, 10, 15), atol=30)


def test_videos_that_are_refused(tmp_path):
    long = _clip(tmp_path / 'a.avi', 301)
    short = _clip(tmp_path / 'b.avi', 2)
    lie = ((301).to_bytes(4, 'little'), (9).to_bytes(4, 'little'))  # the header's number of frames
    with serving(max_pixels=12 * 16) as port:
        for content, status, words in (
            (b'#EXTM3U\nfile:///etc/passwd', 415, 'neither mp4, mov, avi, mkv nor webm'),
            (b'RIFF....AVI nothing', 415, 'The video cannot be read'),
            (long, 413, 'too long: more than 300 frames; cut it, or use --mode=predict'),
            (long.replace(*lie), 413, 'too long: more than 300 frames'),
            (_clip(tmp_path / 'c.avi', 2, (16, 16)), 413, 'frames of 16 x 16, more than 192 pix'),
        ):
            found, answer = post(port, '/clip', content)
            assert found == status and words in answer['error'], answer
        assert ask(port, 'POST', '/clip', short)[0] == 200


def test_unusual_images_are_taken(port, picture):
    grey = Image.fromarray(picture).convert('L')
    deep = cv2.imencode('.png', picture.astype(np.uint16) * 257)[1].tobytes()
    files = {
        'one pixel': encode(picture[:1, :1]),
        'cmyk': encode(picture, 'JPEG', 'CMYK'),
        'palette': encode(picture, 'PNG', 'P'),
        'alpha': encode(picture, 'PNG', 'RGBA'),
        'webp': encode(picture, 'WEBP'),
        '16 bits': deep,
        'grey': encode(np.asarray(grey), mode='L'),
    }
    for name, content in files.items():
        status, found = post(port, '/segment', content)
        assert status == 200, (name, found)
        assert decode(found['overlay']).shape == ((1, 1, 3) if name == 'one pixel' else (9, 14, 3))


def test_photographs_are_turned_upright(port):
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, :8], image[:, 8:] = (255, 0, 0), (0, 255, 0)
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    _, found = post(port, '/segment', encode(image, 'JPEG', exif=exif))
    assert (found['height'], found['width']) == (16, 8)
    overlay = decode(found['overlay'])
    assert (overlay[:6] == COLORS[0]).all() and (overlay[10:] == COLORS[1]).all()


def test_foreign_hosts_and_pages_are_refused(port):
    for host in ('evil.example', f'evil.example:{port}', '127.0.0.1.evil.example', '', '['):
        assert ask(port, 'GET', '/model', Host=host)[0] == 403
    for host in ('localhost', f'localhost:{port}', f'127.0.0.1:{port}', f'[::1]:{port}'):
        assert ask(port, 'GET', '/model', Host=host)[0] == 200
    own = f'127.0.0.1:{port}'
    for origin, status in ((f'http://{own}', 400), ('http://evil.example', 403), ('null', 403)):
        assert ask(port, 'POST', '/segment', b'', Host=own, Origin=origin)[0] == status


def test_names_that_are_allowed():
    with serving(names=['Proxy.example']) as port:
        for host in ('proxy.example', f'PROXY.example:{port}'):
            assert ask(port, 'GET', '/model', Host=host)[0] == 200
        status, _, content = ask(port, 'GET', '/model', Host='gpu-box:8000')
        assert status == 403 and 'start it with --allow_host=gpu-box.' in str(content)
        assert ask(port, 'GET', '/model', Host=socket.gethostname())[0] == 403
    with Server(Answers(VIEWER), '0.0.0.0', 0) as server:
        assert server.allows(f'{socket.gethostname()}:{server.server_port}')
        assert not server.allows('evil.example')


def test_sizes_are_prepared_and_the_state_is_told(monkeypatch):
    seen, states = [], []

    def segment(image):
        seen.append(image.shape)
        states.append(answers.state())
        return _segment(image)

    answers = Answers(dataclasses.replace(VIEWER, segment=segment))
    answers.prepare([(9, 14), (9, 14), (4, 6)], lambda: False)
    assert seen == [(9, 14, 3), (4, 6, 3)]
    assert states[0]['now']['what'] == 'preparation' and states[0]['now']['compiling']
    assert states[0]['pending'] == [(9, 14), (4, 6)] and states[1]['ready'] == [(9, 14)]
    assert answers.state() == {'now': None, 'ready': [(9, 14), (4, 6)], 'pending': []}
    answers.segment(encode(np.zeros((9, 14, 3), np.uint8)))
    assert not states[2]['now']['compiling'] and states[2]['now']['what'] == 'classes'
    # Sizes that were not used for long count as forgotten, as their programs are.
    for side in range(1, 9):
        answers.segment(encode(np.zeros((side, 1, 3), np.uint8)))
    assert len(answers.state()['ready']) == 8 and (9, 14) not in answers.state()['ready']


def test_preparation_waits_for_requests_and_ends_when_told(monkeypatch):
    answers = Answers(VIEWER)
    answers.segment(encode(np.zeros((9, 14, 3), np.uint8)))
    looks = []

    def stopped():
        looks.append(answers.state()['pending'])
        return len(looks) > 2

    monkeypatch.setattr('ggcf_jax.serving.answers.time.sleep', lambda seconds: None)
    answers.prepare([(4, 6)], stopped)  # the request was just now
    assert looks == [[(4, 6)]] * 3
    assert answers.state() == {'now': None, 'ready': [(9, 14)], 'pending': []}


def test_a_request_during_the_preparation_waits_for_it_and_is_the_next():
    started, go_on, seen, found = threading.Event(), threading.Event(), [], []

    def segment(image):
        seen.append(image.shape[:2])
        started.set()
        assert go_on.wait(30)
        return _segment(image)

    answers = Answers(dataclasses.replace(VIEWER, segment=segment))
    image = encode(np.zeros((9, 14, 3), np.uint8))
    preparation = threading.Thread(
        target=answers.prepare, args=([(4, 6), (5, 7)], lambda: bool(found))
    )
    preparation.start()
    assert started.wait(30)
    request = threading.Thread(target=lambda: found.append(answers.segment(image)))
    request.start()
    end = time.monotonic() + 30
    while not answers._asked.locked():
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(Refused, match='busy with another request'):
        answers.segment(image)
    go_on.set()
    request.join(30)
    preparation.join(30)
    assert seen == [(4, 6), (9, 14)] and (found[0]['height'], found[0]['width']) == (9, 14)


def test_examples_come_from_the_latest_panels(tmp_path, rng):
    assert examples.of_run(tmp_path) == ()
    image = rng.integers(0, 255, (40, 56, 3), dtype=np.uint8)
    for step in (2, 10):
        label = np.zeros((40, 56), np.uint8)
        panel = pictures.panel(image // step, label, label, COLORS, 255)
        pictures.write_png(tmp_path / 'panels' / f'{step:08d}' / '1_street_a.png', panel)
    (tmp_path / 'panels' / '00000010' / '2_damaged.png').write_bytes(b'no PNG')
    pictures.write_png(tmp_path / 'panels' / '00000010' / '3_other.png', image)
    (found,) = examples.of_run(tmp_path)
    assert found.name == 'street_a' and found.size == (40, 56)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found.content))), image // 10)


def test_uploads_without_length_or_that_break_off(port):
    start = f'POST /segment HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n'
    for rest, status in (
        ('\r\n', b'411'),
        ('Content-Length: 50\r\n\r\nabc', b'400'),
        (f'Content-Length: {"9" * 5000}\r\n\r\nabc', b'413'),
        (f'Content-Length: {"0" * 5000}3\r\n\r\nabc', b'415'),
        ('Content-Length: -3\r\n\r\nabc', b'411'),
    ):
        with socket.create_connection(('127.0.0.1', port), timeout=30) as connection:
            connection.sendall((start + rest).encode())
            connection.shutdown(socket.SHUT_WR)
            assert connection.makefile('rb').readline().split()[1] == status


def test_one_at_a_time(picture):
    started, go_on = threading.Event(), threading.Event()

    def slow(image):
        started.set()
        assert go_on.wait(30)
        return _segment(image)

    with serving(dataclasses.replace(VIEWER, segment=slow)) as port:
        found = []
        first = threading.Thread(target=lambda: found.append(post(port, '/segment', body)))
        body = encode(picture)
        first.start()
        assert started.wait(30)
        status, headers, content = ask(port, 'POST', '/segment', body)
        assert status == 503 and headers['Retry-After'] == '2'
        assert 'busy' in json.loads(content)['error']
        assert ask(port, 'GET', '/model')[0] == 200  # what needs no computation is answered
        go_on.set()
        first.join()
        assert found[0][0] == 200
        assert post(port, '/segment', body)[0] == 200


def test_what_has_begun_is_answered_at_the_end(picture):
    started, go_on = threading.Event(), threading.Event()

    def slow(image):
        started.set()
        assert go_on.wait(30)
        return _segment(image)

    found = []
    with serving(dataclasses.replace(VIEWER, segment=slow)) as port:
        body = encode(picture)
        first = threading.Thread(target=lambda: found.append(post(port, '/segment', body)))
        first.start()
        assert started.wait(30)
        threading.Timer(0.2, go_on.set).start()
    first.join(5)
    assert found[0][0] == 200


def test_a_model_that_fails_ends_no_server(picture, capfd):
    def fail(image):
        raise RuntimeError('out of memory')

    with serving(dataclasses.replace(VIEWER, segment=fail)) as port:
        for _ in range(2):  # the second is not told that the model is busy
            status, found = post(port, '/segment', encode(picture))
            assert status == 500 and 'The model failed: RuntimeError' in found['error']
    assert 'out of memory' in capfd.readouterr().err


def test_a_model_without_heads_says_so(picture):
    with serving(dataclasses.replace(VIEWER, heads=())) as port:
        _, image = post(port, '/segment', encode(picture))
        query = json.dumps({'id': image['id'], 'y': 0, 'x': 0})
        status, found = post(port, '/attention', query)
        assert status == 409 and 'no attention heads' in found['error']


def test_scales_are_programs_of_their_own(untrained_run, rng, monkeypatch):
    config = workdir_config.load(untrained_run)
    config.eval.scales = (1.0, 2.0)
    image = rng.integers(0, 256, (24, 32, 3), np.uint8)
    expected = model_lib.load(untrained_run, config=config).predict(image)
    seen, of_scale = [], inference.of_scale

    def traced(model, images, plan, scale, extent):
        seen.append(scale)
        return of_scale(model, images, plan, scale, extent)

    monkeypatch.setattr(inference, 'of_scale', traced)
    monkeypatch.delattr(inference, 'scores')  # of all scales in one program
    segment = viewer.load(config, untrained_run, 'latest').segment
    for _ in range(2):
        found = segment(image)
        assert seen == [1.0, 2.0]
    assert (found.dtype, found.shape) == (np.uint8, (24, 32))
    assert (found == expected).mean() > 0.99


@pytest.fixture(scope='module')
def page_url(untrained_run):
    """main.py --mode=serve on an untrained run; told to stop afterwards."""
    command = [sys.executable, 'main.py', '--mode=serve', f'--workdir={untrained_run}', '--port=0']
    process = subprocess.Popen(
        [*command, '--sizes=36x56'],
        cwd=ROOT,
        env=one_device(),
        stdout=subprocess.PIPE,
        text=True,
    )
    line = next(line for line in process.stdout if line.startswith('checkpoint'))
    assert line.startswith('checkpoint of step 0: http://127.0.0.1:')
    yield line.split()[-1]
    process.send_signal(signal.SIGINT)
    assert process.stdout.read().strip() == 'stopped by SIGINT'
    assert process.wait(60) == 0


@pytest.mark.slow
def test_a_served_run_answers_and_stops_in_good_order(page_url, picture):
    port = int(page_url.rpartition(':')[2])
    status, image = post(port, '/segment', encode(np.tile(picture, (4, 4, 1))))
    assert status == 200 and (image['height'], image['width']) == (36, 56)
    assert sum(image['shares']) == pytest.approx(1) and len(image['shares']) == 11
    query = {'id': image['id'], 'y': 20, 'x': 33}
    status, found = post(port, '/attention', json.dumps(query))
    local, grid, learned = (decode(head['heat'])[..., 3] > 0 for head in found['heads'])
    # Pixel (20, 33) is nearest to position (3, 4) of 5 x 7.
    assert np.argwhere(local).tolist() == [[y, x] for y in (2, 3, 4) for x in (3, 4, 5)]
    assert np.argwhere(grid).tolist() == [[y, x] for y in (1, 3) for x in (0, 2, 4, 6)]
    assert learned.all()


@pytest.mark.slow
def test_the_page_shrinks_queues_previews_and_downloads(picture, tmp_path):
    """In a browser, with a model that waits until it is told to go on."""
    path = browser.find()
    if path is None:
        pytest.skip(f'no browser: none of {", ".join(browser.NAMES)} is installed')
    go_on = threading.Semaphore(0)

    def slow(image):
        assert go_on.acquire(timeout=60)
        return _segment(image)

    (tmp_path / 'small.png').write_bytes(encode(picture))
    (tmp_path / 'photo.v2.png').write_bytes(encode(np.tile(picture, (10, 10, 1))))  # 90 x 140
    viewer = dataclasses.replace(
        VIEWER, segment=slow, examples=(Example('street', encode(picture), (9, 14)),)
    )
    message = "document.querySelector('#message')"
    with (
        serving(viewer, max_pixels=5000) as port,
        browser.open_page(path) as page,
    ):
        page.call('Page.navigate', url=f'http://127.0.0.1:{port}')
        page.wait("document.querySelectorAll('#examples img').length == 1")
        page.choose_files('#file', [tmp_path / 'photo.v2.png', tmp_path / 'small.png'])
        # Before there are classes: the picture itself, and what is being done.
        page.wait(f"{message}.textContent.startsWith('Compiling for images of 88 x 56')")
        assert page.run(f'{message}.className') == 'busy'
        assert 'Shrunk from 140 x 90' in page.run(f'{message}.textContent')
        assert not page.run("document.querySelector('#stage').hidden")
        assert page.run("document.querySelector('#overlay').hidden")
        page.wait("document.querySelector('#image').naturalWidth == 140")
        assert page.run('files.map(f => f.state)') == ['busy', 'waiting']
        page.choose_files('#file', [tmp_path / 'small.png'])  # while it is busy
        for _ in range(3):
            go_on.release()
        page.wait("!busy && files.every(f => f.state == 'done')")
        assert page.run('files.map(f => [f.result.width, f.result.height])') == [
            [88, 56], [14, 9], [14, 9],
        ]  # fmt: skip
        assert page.run(f'{message}.textContent').startswith('14 x 9 pixels in')

        # The first of them again: its classes stay beside the attention, and can be downloaded.
        page.click('#files button:nth-child(1)')
        assert page.run('current.width') == 88
        page.click('#stage', 0.5, 0.5)
        page.wait('attention && !busy')
        assert not page.run("document.querySelector('#overlay').hidden")
        assert not page.run("document.querySelector('#heat').hidden")
        assert page.run("document.querySelector('#labels-link').download") == 'photo.v2_labels.png'
        page.call('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(tmp_path))
        page.click('#labels-link')
        page.click('#overlay-link')
        for name, mode in (('photo.v2_labels.png', 'P'), ('photo.v2_overlay.png', 'RGBA')):
            _wait_for(tmp_path / name)
            assert Image.open(tmp_path / name).mode == mode
            assert Image.open(tmp_path / name).size == (88, 56)
        go_on.release()
        page.click('#examples button')
        page.wait("!busy && files.length == 4 && files[3].state == 'done'")
        assert page.run('files[3].name') == 'street.png'
        assert page.messages == []


def _wait_for(path):
    """Until a download is there."""
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f'{path} does not come'
        time.sleep(0.05)


@pytest.mark.slow
def test_the_page_plays_a_video_of_street_scenes(tmp_path):
    path = browser.find()
    if path is None:
        pytest.skip(f'no browser: none of {", ".join(browser.NAMES)} is installed')
    scene, _ = paint.paint_scene(0, 'train', 0, (64, 128))
    writer = cv2.VideoWriter(
        str(tmp_path / 'street.avi'), cv2.VideoWriter.fourcc(*'MJPG'), 5.0, (96, 64)
    )
    for left in range(9):
        writer.write(np.ascontiguousarray(scene[:, left : left + 96, ::-1]))
    writer.release()
    _clip(tmp_path / 'long.avi', 301)
    message = "document.querySelector('#message').textContent"
    with serving() as port, browser.open_page(path) as page:
        page.call('Page.navigate', url=f'http://127.0.0.1:{port}')
        page.wait("document.querySelector('#lengths')?.textContent.includes('up to 300 frames')")
        page.choose_files('#file', [tmp_path / 'street.avi', tmp_path / 'long.avi'])
        page.wait("files.length == 2 && files[1].state == 'bad' && !busy")
        assert 'long.avi: The video is too long: more than 300 frames' in page.run(message)
        assert page.run('[files[0].result.frames, files[0].result.lost]') == [9, 0]
        page.wait("document.querySelector('#clip').readyState >= 2")
        assert page.run("document.querySelector('#clip').videoWidth") == 96
        assert page.run("document.querySelector('#clip').duration") == pytest.approx(9 / 5, 0.15)
        assert page.run("document.querySelector('#stage').hidden")
        page.call('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(tmp_path))
        page.click('#clip-link')
        _wait_for(tmp_path / 'street_overlay.webm')
        assert len(video.Reader(tmp_path / 'street_overlay.webm').frames(100)) == 9
        page.screenshot(tmp_path / 'page.png')
        # An image afterwards takes its place.
        (tmp_path / 'image.png').write_bytes(encode(scene))
        page.choose_files('#file', [tmp_path / 'image.png'])
        page.wait("files.length == 3 && files[2].state == 'done' && !busy")
        assert page.run("[document.querySelector('#clip').hidden, current.width]") == [True, 128]
        assert ['413' in each['entry']['text'] for each in page.messages] == [True]  # long.avi


@pytest.mark.slow
def test_the_page_in_a_browser(page_url, picture, tmp_path):
    path = browser.find()
    if path is None:
        pytest.skip(f'no browser: none of {", ".join(browser.NAMES)} is installed')
    (tmp_path / 'image.png').write_bytes(encode(np.tile(picture, (4, 4, 1))))
    (tmp_path / 'text.png').write_text('Not an image.')
    with browser.open_page(path) as page:
        page.call('Page.navigate', url=page_url)
        page.wait("document.title == 'GGCF on camvid'")
        ready = "document.querySelector('#limits').textContent.startsWith('Ready for')"
        page.wait(ready, 300)
        page.choose_files('#file', [tmp_path / 'text.png'])
        page.wait("document.querySelector('#message.bad')")
        assert 'it is no image' in page.run("document.querySelector('#message').innerText")
        page.choose_files('#file', [tmp_path / 'image.png'])
        page.wait("!document.querySelector('#stage').hidden && !busy")
        assert page.run("document.querySelector('#message').innerText").startswith('56 x 36 pixels')
        assert page.run("document.querySelector('#overlay').naturalWidth") == 56
        assert page.run("document.querySelectorAll('#classes tr').length") == 11

        # Just past half way down and across: pixel (18, 28) of 36 x 56.
        page.click('#stage', 0.51, 0.51)
        page.wait('attention && !busy')
        assert page.run('[attention.y, attention.x]') == [18, 28]
        heads = (
            "[...document.querySelectorAll('#heads label')].map(e => e.innerText.split('\\n')[0])"
        )
        assert page.run(heads) == ['1 local:1', '2 grid:2', '3 learned', 'none']
        first = page.run("document.querySelector('#heat').src")
        page.click('#heads label:nth-child(2) input')
        assert page.run("document.querySelector('#heat').src") not in ('', first)
        assert not page.run("document.querySelector('#overlay').hidden")
        # The map of 5 x 7 positions, 8 pixels each, begins half a position outside.
        left = page.run("parseFloat(document.querySelector('#heat').style.left)")
        assert left == pytest.approx(-100 * 4 / 56, rel=1e-3)
        page.click('#heads label:nth-child(4) input')
        assert page.run("document.querySelector('#heat').hidden")
        assert not page.run("document.querySelector('#overlay').hidden")

        # By keyboard: the cross moves by a position, Enter asks.
        page.run("document.querySelector('#stage').focus()")
        page.press('ArrowDown', 40)
        page.press('ArrowRight', 39)
        page.press('Enter', 13)
        page.wait('attention.y == 26 && !busy')
        assert page.run('attention.x') == 36
        page.run("document.querySelector('#opacity').focus()")
        page.press('Home', 36)
        assert page.run("document.querySelector('#overlay').style.opacity") == '0'
        if 'SCREENSHOTS' in os.environ:
            page.screenshot(pathlib.Path(os.environ['SCREENSHOTS']) / 'serve_test.png')
        # The text that was sent as an image is the one error that the browser saw.
        errors = [m['entry']['text'] for m in page.messages if m.get('entry')]
        assert len(errors) == len(page.messages) == 1 and '415' in errors[0]
