"""Extraction by workers of a Ray cluster: the rows of one process, whatever happens to workers, nodes and driver."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from conftest import PROJECT, draw
from PIL import Image

from fewshot.data import Photo
from fewshot.encoder import Encoder
from fewshot.errors import TaskError
from jclip import progress

os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="ab" * 32)  # read when Ray is imported
try:
    import ray
    from ray.cluster_utils import Cluster
except ImportError:
    pytest.skip("needs Ray: pip install -r requirements-cluster.txt", allow_module_level=True)

from fewshot.cluster import ClusterEncoder, machines, messages, pool
from fewshot.cluster.files import size_of
from fewshot.cluster.worker import Worker, remove_left_behind
from tests import poison

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

OUTPUTS = ("text.npz", "support.npz", "val.npz", "test.npz")
BATCH, N_PHOTOS = 4, 60
VIEWS = ("plain", "flip", "jitter")
MEANS = ("plain", "mirror")  # of test photographs
SENTENCES = [[f"a photo of {i} {'very ' * (i % 5)}large dogs" for i in range(90)], ["a cat"]]
OBJECT_STORE = 80 * 2**20  # bytes; Ray's least is 75 MB
NOTICE_SECONDS = 120.0  # until the driver must know that a worker is lost


@pytest.fixture(scope="module")
def cluster():
    """Start a cluster of one node with two CPUs; tests may add others."""
    with pytest.MonkeyPatch.context() as patch:
        # Ray starts a process for each CPU in advance, for tasks that are not ours
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "object_store_memory": OBJECT_STORE, "include_dashboard": False},
        )
        yield started
        ray.shutdown()
        started.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(N_PHOTOS):
        draw(folder / f"{i:02}.jpg", i % 6, i)
    (folder / "07.jpg").write_bytes(b"no photograph")
    return [Photo(folder, f"{i:02}.jpg", 0) for i in range(N_PHOTOS)]


@pytest.fixture(scope="module")
def expected(photos, tiny_weights):
    """Return what one process makes of photographs, views, means of views, and sentences."""
    return everything(Encoder.load(tiny_weights, "cpu", BATCH), photos)


def everything(encoder, photos):
    views = encoder.encode_views(photos[:9], VIEWS, 3), encoder.encode_means(photos[:5], MEANS, "test", "test")
    return encoder.encode_photos(photos), *views, encoder.encode_prompts(SENTENCES)


@contextmanager
def encoder(cluster, weights, **options):
    options = {"device": "cpu", "batch_size": BATCH, "cluster": cluster.address, **options}
    with closing(ClusterEncoder.load(weights, **options)) as loaded:
        loaded.model.pool.wait_for_all()
        yield loaded


def check_equal(made, expected):
    for found, wanted in zip(made[:3], expected[:3]):
        assert found.failures == wanted.failures
        assert found.rows.tobytes() == wanted.rows.tobytes()
    assert made[3].tobytes() == expected[3].tobytes()


def workers(of):
    """The processes of the workers that are ready."""
    return [slot.pid for slot in of.model.pool.slots if slot.is_active]


def in_background(function):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


# ---- the same rows ----


@pytest.mark.parametrize("n", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_workers_make_the_rows_of_one_process(
    cluster, photos, expected, tiny_weights, n, tmp_path, caplog, monkeypatch
):
    caplog.set_level("INFO")
    monkeypatch.setattr(progress, "INTERVAL", 0)
    with encoder(cluster, tiny_weights, workers=n, store=tmp_path) as made:
        check_equal(everything(made, photos), expected)
        assert made.scale == Encoder.load(tiny_weights, "cpu").scale
        assert made._note() == ("1 worker" if n == 1 else "2 workers")
        assert all(not slot.jobs for slot in made.model.pool.slots)
    assert caplog.text.count("workers read the files themselves") == 1
    assert re.search(rf"photographs: {N_PHOTOS} of {N_PHOTOS}, [0-9.]+ per second, 00:00 left, {n} worker", caplog.text)
    # and under the same keys
    local = Encoder.load(tiny_weights, "cpu", BATCH, tmp_path)
    n_rows = len(local.store._locations)
    check_equal(everything(local, photos), expected)
    assert local.store.computed == 0 and n_rows == N_PHOTOS - 1 + 8 * (len(VIEWS) - 1) + 5 * len(MEANS) + 91


def far_away():
    """Make a Worker that is on a machine with other files. Classes in functions reach Ray's processes as they are."""

    class FarAway(Worker):
        def sees(self, path, size, sha256):
            return False

        def _has_weights(self):
            return False

    return FarAway


def test_photographs_and_weights_go_through_ray_where_they_are_missing(
    cluster, photos, expected, tiny_weights, caplog, monkeypatch, tmp_path
):
    puts = []
    monkeypatch.setattr(ray, "put", lambda value, put=ray.put: puts.append(value) or put(value))
    caplog.set_level("INFO")
    with encoder(cluster, tiny_weights, workers=2, worker=far_away()) as made:
        check_equal(everything(made, photos), expected)
        check_missing(made, photos, tiny_weights, tmp_path)
        (folder,) = Path(tempfile.gettempdir()).glob(f"jclip-photographs-{workers(made)[0]}-*")
        wait_for(lambda: not list(folder.iterdir()))  # each batch's files are removed
        assert folder.stat().st_mode & 0o777 == 0o700
        (pid,) = workers(made)[:1]
    wait_for(lambda: not Path("/proc", str(pid)).exists())  # also of a process that is dead and not yet reaped
    remove_left_behind()  # as each worker does that starts
    assert not folder.exists()
    assert caplog.text.count("photographs go through Ray") == caplog.text.count("weights get there through Ray") == 1
    assert len(puts) == 1


def test_a_file_that_is_another_one_where_the_worker_is_goes_through_ray(
    cluster, photos, expected, tiny_weights, monkeypatch, caplog, tmp_path
):
    """The first photograph is the same there; of the others some are older, and of another size."""
    caplog.set_level("INFO")
    monkeypatch.setattr(
        "fewshot.cluster.size_of",
        lambda path: (size := size_of(path)) and size + (path.name in ("03.jpg", *(f"{i}.jpg" for i in range(11, 16)))),
    )
    with encoder(cluster, tiny_weights, workers=2) as made:
        check_equal(everything(made, photos), expected)
        check_missing(made, photos, tiny_weights, tmp_path)
    assert caplog.text.count("they get there through Ray") == 1


def check_missing(made, photos, weights, folder):
    """Check photographs that are not there, and that an encoder goes on after an error."""
    (folder / "folder.jpg").mkdir(parents=True)
    shutil.copy(photos[0].path, folder / "here.jpg")
    odd = [Photo(folder, name, 0) for name in ("here.jpg", "none.jpg", "folder.jpg")]
    wanted = Encoder.load(weights, "cpu", BATCH).encode_photos(odd)
    found = made.encode_photos(odd)
    assert found.failures == wanted.failures and len(found.failures) == 2
    with pytest.raises(TaskError, match="none.jpg: cannot be read"):
        ClusterEncoder(**{**vars(made), "strict": True}).encode_photos(odd * 20)
    # what was under way is forgotten
    assert made.encode_photos(odd[:1]).rows.tobytes() == wanted.rows[:1].tobytes()


# ---- workers that differ ----


def differing(name, value, tmp_path, n=99):
    """Make a Worker of which the first n have another version of something."""

    class Differing(Worker):
        def start(self, sent=None):
            there = super().start(sent)
            made = len(list(tmp_path.iterdir()))
            (tmp_path / str(os.getpid())).touch()
            return {**there, name: value} if made < n else there

    return Differing


@pytest.mark.parametrize(
    "name", ["program", "weights", *(pytest.param(name, marks=pytest.mark.slow) for name in ("Pillow", "Jittor"))]
)
def test_a_worker_that_differs_is_refused(cluster, photos, tiny_weights, tmp_path, name):
    differs = differing(name, "0.0", tmp_path)
    words = rf"no worker can be used; \S+: {name} 0.0 there, \S+.* here"
    with pytest.raises(TaskError, match=words), encoder(cluster, tiny_weights, workers=2, worker=differs):
        pass


def test_the_others_go_on_without_it(cluster, photos, expected, tiny_weights, tmp_path, caplog):
    with encoder(cluster, tiny_weights, workers=2, worker=differing("program", "0.0", tmp_path, 1)) as made:
        check_equal(everything(made, photos), expected)
        assert made._note() == "1 worker"
    assert "refused" in caplog.text and "1 of 2 go on" in caplog.text


def test_the_program_is_known_by_its_source(tmp_path, monkeypatch):
    for source in messages.SOURCES:
        path = PROJECT / source
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / source)
    messages._sources_sha256.cache_clear()
    here = messages._sources_sha256()
    monkeypatch.setattr(messages, "PROJECT", tmp_path)
    messages._sources_sha256.cache_clear()
    assert messages._sources_sha256() == here
    with open(tmp_path / "jclip/kernels.h", "a") as file:
        file.write("\n")
    messages._sources_sha256.cache_clear()
    assert messages._sources_sha256() != here
    messages._sources_sha256.cache_clear()


# ---- faults ----


def test_a_killed_worker_costs_the_batches_that_it_had(cluster, photos, expected, tiny_weights, caplog, monkeypatch):
    sent, send = [], pool.Pool._send
    monkeypatch.setattr(pool.Pool, "_send", lambda self, slot, job: sent.append(job) or send(self, slot, job))
    with encoder(cluster, tiny_weights, workers=2) as made:
        check_equal(everything(made, photos), expected)
        n = len(sent)
        # of a reading process: the worker reads again
        for worker in workers(made):
            os.kill(children(worker, "spawn_main")[0], signal.SIGKILL)
        time.sleep(0.5)  # so that the workers' pools know it before they have something to read
        check_equal(everything(made, photos), expected)
        assert len(sent) == 2 * n and "died" not in caplog.text
        sent.clear()
        killed = []

        def kill(self, slot, job):
            send(self, slot, job)
            sent.append(job)
            if len(sent) == 8:
                killed.append(slot.pid)
                os.kill(slot.pid, signal.SIGKILL)

        monkeypatch.setattr(pool.Pool, "_send", kill)
        check_equal(everything(made, photos), expected)
        assert n < len(sent) <= n + pool.N_BATCHES
        made.model.pool.wait_for_all()  # another one takes its place
        assert len(workers(made)) == 2 and killed[0] not in workers(made)
    assert "died" in caplog.text and "another one starts" in caplog.text


def test_workers_that_die_of_every_batch_end_the_run_and_accuse_no_photograph(
    cluster, photos, tiny_weights, monkeypatch
):
    class Dying(Worker):
        def step(self, work):
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(pool, "DEATHS_IN_A_ROW", 1)
    monkeypatch.setattr(pool, "DEATHS_PER_WORKER", 0)
    with encoder(cluster, tiny_weights, workers=1, worker=Dying) as made, pytest.raises(TaskError, match="every batch"):
        made.encode_photos(photos)


def test_a_worker_that_hangs_is_given_up(cluster, photos, expected, tiny_weights, monkeypatch, caplog):
    monkeypatch.setattr(pool, "STEP_SECONDS", 3.0)
    with encoder(cluster, tiny_weights, workers=2) as made:
        os.kill(workers(made)[0], signal.SIGSTOP)
        check_equal(everything(made, photos), expected)
    assert "gave no answer for" in caplog.text


@pytest.mark.parametrize("kind, cause", [(poison.READER, "the process that decodes it"), (poison.WORKER, "the worker")])
def test_a_photograph_that_kills_is_listed_as_unreadable(
    cluster, photos, expected, tiny_weights, tmp_path, monkeypatch, kind, cause
):
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    poison.register()
    poisoned = [9] if kind == poison.WORKER else [9, 10, 40]
    mixed = list(photos)
    for i in poisoned:
        (tmp_path / photos[i].name).write_bytes(kind)
        mixed[i] = photos[i]._replace(folder=tmp_path)
    with encoder(cluster, tiny_weights, workers=2) as made:
        rows, failures = made.encode_photos(mixed)
    assert sorted(failures) == sorted([7, *poisoned])
    assert all(failures[i].startswith(cause) and "2 times" in failures[i] for i in poisoned)
    readable = [i for i in range(N_PHOTOS) if i not in failures]
    assert rows[readable].tobytes() == expected[0].rows[readable].tobytes()


def test_a_node_that_is_lost_costs_nothing(cluster, photos, expected, tiny_weights, caplog):
    node = add_node(cluster)
    with encoder(cluster, tiny_weights, workers=4) as made:
        in_background(lambda: (time.sleep(0.05), cluster.remove_node(node, allow_graceful=False)))
        # Ray may take seconds to tell the driver of the node's second worker, and twenty passes take less.
        until = time.monotonic() + NOTICE_SECONDS
        while made._note() != "2 workers":
            assert time.monotonic() < until, made._note()
            check_equal(everything(made, photos), expected)
    assert "died" in caplog.text


@pytest.mark.slow
def test_fifty_kills_at_random_moments_cost_nothing(cluster, photos, expected, tiny_weights, caplog):
    """Of workers, ready or still starting, of their reading processes, and of nodes with the workers on them."""
    rng, killed, nodes, passes = random.Random(21), [], [add_node(cluster)], 0
    with encoder(cluster, tiny_weights, workers=4) as made:

        def kill_one():
            slots = [slot for slot in made.model.pool.slots if slot.pid]
            what = rng.choice(["node", "reader", *["worker"] * 6])
            pid = rng.choice(slots).pid if slots else 0
            pid = next(iter(children(pid, "spawn_main")), 0) if what == "reader" else pid
            if what == "node" and nodes:
                cluster.remove_node(nodes.pop(), allow_graceful=False)
            elif command_of(pid):
                os.kill(pid, signal.SIGKILL)
            else:
                return
            killed.append(what)

        def kill_many():
            while len(killed) < 50:
                time.sleep(rng.uniform(0, 5))
                kill_one()

        killer = in_background(kill_many)
        while killer.is_alive():
            check_equal(everything(made, photos), expected)
            passes += 1
            if not nodes:  # Ray does this in the main thread only
                nodes.append(add_node(cluster))
    print(passes, "passes;", {what: killed.count(what) for what in set(killed)})
    assert caplog.text.count("another one starts") >= 30 and set(killed) == {"node", "reader", "worker"}


def add_node(cluster):
    return cluster.add_node(num_cpus=2, object_store_memory=OBJECT_STORE)


def test_a_driver_that_is_killed_leaves_nothing_and_is_started_again(cluster, work, extracted):
    command = [sys.executable, PROJECT / "extract_feature.py", "--cluster", cluster.address, "--workers", "2"]
    for n_parts in (0, 2):  # of the store: sentences, photographs
        with subprocess.Popen(command, cwd=work, stderr=subprocess.PIPE, text=True) as driver:
            assert any("worker" in line for line in iter(driver.stderr.readline, ""))
            while len(list(work.glob("output/store/*.npy"))) < n_parts and driver.poll() is None:
                time.sleep(0.02)
            driver.kill()
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"kept 0 ", done.stdout), done.stdout
    assert [(work / "output" / name).read_bytes() for name in OUTPUTS] == [
        (extracted[0] / name).read_bytes() for name in OUTPUTS
    ]
    wait_for(lambda: not [pid for pid in processes() if b"ray::" in command_of(pid) and b"Worker" in command_of(pid)])


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def processes():
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def children(pid, word):
    """The processes that `pid` has started whose command has a word."""
    found = []
    for other in processes():
        try:
            parent = int(Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid and word.encode() in command_of(other):
            found.append(other)
    return found


# ---- the command ----


def test_the_command_starts_ray_here_and_gives_the_files_of_one_process(work, extracted, run):
    done = run("extract_feature.py", "--cluster", "local", "--workers", "5", cwd=work)
    for name in OUTPUTS:
        assert (work / "output" / name).read_bytes() == (extracted[0] / name).read_bytes(), name
    assert "5 were asked for, and there is no room for more" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) < 8, done.stderr
    # the rows have the same keys
    assert "encoded 0," in run("extract_feature.py", cwd=work).stdout


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--cluster", "127.0.0.1:1"], 1, "--cluster 127.0.0.1:1: no Ray answers there (Connection refused)"),
        (["--cluster", "127.0.0.1:99999"], 1, "--cluster 127.0.0.1:99999: no Ray answers there"),
        (["--cluster", "somewhere"], 2, "expected local, auto or HOST:PORT"),
        (["--cluster", "local", "--workers", "0"], 2, "expected a whole number from 1"),
        (["--workers", "2"], 2, "--workers needs --cluster"),
    ],
)
def test_what_cannot_be_used_is_one_line(work, run, arguments, code, words):
    started = time.monotonic()
    done = run("extract_feature.py", *arguments, cwd=work, check=False)
    assert done.returncode == code and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and time.monotonic() - started < 60
    assert code == 2 or len([line for line in done.stderr.splitlines() if "error" in line]) == 1


@pytest.mark.parametrize(
    "answer, words", [(None, "no Ray answers there (timed out)"), (b"HTTP/1.1 400 \r\n", "not Ray")]
)
def test_a_port_that_is_not_rays_is_one_line(answer, words, monkeypatch):
    monkeypatch.setattr(machines, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        if answer:
            in_background(lambda: server.accept()[0].sendall(answer))
        with pytest.raises(TaskError, match=re.escape(words)):
            machines.connect(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize(
    "nodes, workers, device, plan",
    [
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 64.0}], None, "auto", machines.Plan(2, 8, "cuda")),
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 64.0}], 5, "cuda", machines.Plan(2, 8, "cuda")),
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 64.0}], None, "cpu", machines.Plan(10, 8, "cpu")),
        ([{"CPU": 4.0}], 1, "auto", machines.Plan(1, 4, "cpu")),
        ([{"CPU": 4.0}], 1, "cuda", "no machine of the cluster has a GPU"),
        ([{}], 1, "auto", "no machine of the cluster has a CPU"),
    ],
)
def test_a_worker_has_a_gpu_where_there_are_any(monkeypatch, nodes, workers, device, plan):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": resources} for resources in nodes])
    if isinstance(plan, str):
        with pytest.raises(TaskError, match=plan):
            machines.plan(workers, device)
    else:
        assert machines.plan(workers, device) == plan


def test_auto_without_a_cluster_is_one_line(monkeypatch):
    def init(*_, **__):
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify the one to connect to.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(TaskError, match="--cluster auto: no Ray runs on this machine; .*ray start.*Could not find any"):
        machines.connect("auto")


def test_without_ray_the_option_says_what_to_install(work):
    code = (
        "import sys; sys.modules['ray'] = None; import extract_feature as e; sys.exit(e.main(['--cluster', 'local']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: --cluster needs Ray; run: pip install -r requirements-cluster.txt"
    assert "Traceback" not in done.stderr and not (work / "output").exists()


@pytest.mark.parametrize(
    "cpus, asked, workers, share",
    [
        ([2], None, 1, 2),
        ([2], 2, 2, 1),
        ([2], 5, 2, 1),  # fewer than asked for
        ([64], None, 8, 8),
        ([4, 16], None, 5, 4),
        ([1, 16, 16], None, 4, 8),
        ([0, 3], None, 1, 3),
        ([8, 8], 3, 3, 4),
    ],
)
def test_processors_are_divided_into_equal_workers(cpus, asked, workers, share):
    assert machines.divide(cpus, asked) == (workers, share)
    assert sum(n // share for n in cpus) >= workers
