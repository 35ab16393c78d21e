"""Jittor imported and used in several threads, each test in a process of its own."""

import pytest
from conftest import PROJECT, jittor_alone, python

SETUP = f"""
import os, signal, subprocess, sys, threading, time
import numpy as np
import jclip

def load():
    return jclip.load("{PROJECT}/demo/clip.npz", device="cpu")[0]

def images(n):
    return np.random.default_rng(n).normal(size=(n, 3, 48, 48)).astype(np.float32)

def in_thread(function, *arguments):
    result = []
    thread = threading.Thread(target=lambda: result.append(function(*arguments)))
    thread.start()
    thread.join()
    return result[0]

def children():
    return [pid for pid in os.listdir("/proc") if pid.isdecimal() and parent(pid) == os.getpid()]

def parent(pid):
    try:
        return int(open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[1])
    except OSError:  # it has ended meanwhile
        return None

def check_python_is_itself():
    assert subprocess.run(["sh", "-c", "kill -9 $$"]).returncode == -9
    assert not children()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    except KeyboardInterrupt:
        print("interrupted")
    os.kill(os.getpid(), signal.SIGQUIT)  # ends any Python, where Jittor's handler goes on
    time.sleep(10)
"""
QUIT = -3  # the return code of a process that SIGQUIT has ended


# With the parallel compiler, Jittor forks processes at its import that are killed when the importing thread ends.
@pytest.mark.parametrize("environment", [{}, {"use_parallel_op_compiler": "2"}])
@pytest.mark.parametrize("first", ["pass", "import jittor"])
def test_the_thread_that_imports_jittor_may_end(first, environment):
    done = python(
        f"""{SETUP}
in_thread(exec, {first!r})
time.sleep(0.3)
model = in_thread(load)
time.sleep(0.3)
rows = [in_thread(lambda: model.encode_image(images(2)).numpy()) for _ in range(2)]
assert (rows[0] == rows[1]).all()
check_python_is_itself()
""",
        **environment,
    )
    assert (done.returncode, done.stdout.strip()) == (QUIT, "interrupted"), done.stderr
    assert not done.stderr


@jittor_alone
def test_a_thread_may_import_jittor_before_jclip_and_end_after_it_has_loaded():
    done = python(f"""
import threading
def start():
    import os
    os.environ.update(nvcc_path="", log_silent="1", use_mpi="0")
    import jittor
    exec({SETUP!r}, globals())
    globals()["model"] = load()
thread = threading.Thread(target=start)
thread.start()
thread.join()
time.sleep(0.3)
in_thread(lambda: model.encode_image(images(2)).numpy())
check_python_is_itself()
""")
    assert (done.returncode, done.stdout.strip()) == (QUIT, "interrupted"), done.stderr


def test_handlers_of_the_users_own_stay_where_a_thread_imports_jittor():
    done = python(f"""{SETUP}
called = []
for name in ("SIGCHLD", "SIGINT", "SIGQUIT"):
    signal.signal(getattr(signal, name), lambda number, frame: called.append(number))
in_thread(load)
for name in ("SIGINT", "SIGQUIT"):
    os.kill(os.getpid(), getattr(signal, name))
assert subprocess.run(["sh", "-c", "kill -9 $$"]).returncode == -9
time.sleep(0.1)
print(sorted(set(called)) == sorted([signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD]))
""")
    assert done.stdout.strip() == "True", done.stderr


def test_threads_may_load_at_the_same_moment_as_the_first_use():
    done = python(f"""{SETUP}
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
from concurrent.futures import ThreadPoolExecutor
barrier = threading.Barrier(5)
def start(number):
    barrier.wait()
    if number == 4:
        import jittor
        return jittor.ones((2, 2)).numpy().sum()
    return load().encode_image(images(2)).numpy().sum()
with ThreadPoolExecutor(5) as pool:
    *sums, four = pool.map(start, range(5))
print(len(set(sums)), four)
check_python_is_itself()
""")
    assert (done.returncode, done.stdout.split()) == (QUIT, ["1", "4.0", "interrupted"]), done.stderr
    assert len([line for line in done.stderr.splitlines() if "computes on" in line]) == 1


def test_coroutines_may_load_and_encode_in_their_executor():
    done = python(f"""{SETUP}
import asyncio
async def main():
    call = asyncio.get_running_loop().run_in_executor
    model = await call(None, load)
    sums = await asyncio.gather(*[call(None, lambda: model.encode_image(images(3)).numpy().sum()) for _ in range(8)])
    child = await asyncio.create_subprocess_exec("sh", "-c", "kill -9 $$")
    print(len(set(sums)), await child.wait())
asyncio.run(main())
check_python_is_itself()
""")
    assert (done.returncode, done.stdout.split()) == (QUIT, ["1", "-9", "interrupted"]), done.stderr


def test_threads_that_encode_at_once_get_what_one_gets_and_leave_gradients_on():
    done = python(f"""{SETUP}
import jittor as jt
model, texts = load(), jclip.tokenize(["a dog", "three hearts"])

@jt.no_grad()
def text_rows():
    return model.encode_text(texts).numpy()

def rows(n):
    with jt.no_grad():
        return model.encode_image(images(n)).numpy(), text_rows()

expected, wrong = {{n: rows(n) for n in (1, 2, 5, 32)}}, []
def work(n):
    for _ in range(25):
        wrong.extend(1 for got, want in zip(rows(n), expected[n]) if not np.allclose(got, want, atol=1e-5))
switch, _ = sys.getswitchinterval(), sys.setswitchinterval(1e-5)  # threads change places as often as they can
threads = [threading.Thread(target=work, args=(n,)) for n in expected]
[thread.start() for thread in threads], [thread.join() for thread in threads]
print(len(wrong), jt.flags.no_grad)
""")
    assert done.stdout.split() == ["0", "False"], done.stderr


NO_GRAD = """
import threading
from jclip import runtime
jt = runtime.jittor()
import jclip.model
entered, left = threading.Event(), threading.Event()

def other():
    with jt.no_grad():
        entered.set()
        left.wait()
        flags.append(jt.flags.no_grad)

flags, thread = [], threading.Thread(target=other)
"""


def test_a_no_grad_block_holds_until_its_end_whatever_other_threads_do():
    done = python(f"""{NO_GRAD}
with jt.no_grad():
    thread.start()
    entered.wait()
left.set()
thread.join()
print(flags, jt.flags.no_grad)
""")
    assert done.stdout.strip() == "[True] False", done.stdout + done.stderr


def test_no_grad_blocks_of_one_thread_are_jittors():
    done = python("""
from jclip import runtime
jt = runtime.jittor()
import jclip.model
seen = []
def note():
    seen.append(int(jt.flags.no_grad))
with jt.no_grad():
    note()
    with jt.enable_grad():
        note()
        with jt.no_grad():
            note()
        note()
    note()
note()
try:
    jt.no_grad(unknown=1).__enter__()
except Exception:
    note()
def generate():
    with jt.no_grad():
        yield
generator = generate()
next(generator)
import threading
thread = threading.Thread(target=generator.close)
thread.start()
thread.join()
note()
print(*seen)
""")
    assert done.stdout.strip() == "1 0 1 0 1 0 0 0", done.stdout + done.stderr
