"""Make the project's virtual environment in .venv and run the demo or the tests in it.

    python3 tools/bootstrap.py demo [ARGS...]    what tools/demo.py takes
    python3 tools/bootstrap.py test [ARGS...]    ruff, then pytest with ARGS
    python3 tools/bootstrap.py lint              ruff alone
    python3 tools/bootstrap.py env [EXTRA...]    .venv alone, with extras of pyproject.toml

Needs the standard library alone. Versions come from requirements/constraints.txt, names from
pyproject.toml. A second call finds the environment unchanged and starts at once; an interrupted or
outdated one is repaired. The file parses on old Pythons, so that they can be told what is missing.
"""

import hashlib
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile

MINIMUM = (3, 10)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EXTRAS = {"demo": [], "test": ["test"], "lint": ["test"]}
FIRST_IMPORTS = "import ropevit_mmdet, cv2, torch, torchvision, mmdet.apis"


class BootstrapError(Exception):
    """Something the user can fix; shown as one line."""


def main(argv):
    command = argv[0] if argv else "env"
    if command not in ("env", "demo", "test", "lint"):
        wants_help = command in ("-h", "--help")
        (sys.stdout if wants_help else sys.stderr).write(__doc__)
        return 0 if wants_help else 2
    try:
        check_interpreter(sys.version_info)
        extras = argv[1:] if command == "env" else EXTRAS[command]
        python = Environment(ROOT).ensure(extras)
        return run_command(command, python, argv[1:])
    except BootstrapError as error:
        sys.stderr.write("error: {}\n".format(error))
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; run the same command again to continue\n")
        return 130


def check_interpreter(version):
    """Raise BootstrapError if this Python is too old or cannot make virtual environments."""
    if tuple(version[:2]) < MINIMUM:
        raise BootstrapError(
            "needs Python {}.{} or newer, this is {}.{} ({}); name another one, e.g. "
            "make PYTHON=python3.11".format(
                MINIMUM[0], MINIMUM[1], version[0], version[1], sys.executable
            )
        )
    for module in ("venv", "ensurepip"):
        if not has_module(module):
            raise BootstrapError(
                "this Python ({}) lacks its module '{}'; on Debian and Ubuntu: "
                "apt install python{}.{}-venv".format(
                    sys.executable, module, version[0], version[1]
                )
            )


def has_module(name):
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def run_command(command, python, args):
    """Run what was asked for; returns the first exit status that is not 0."""
    if command == "env":
        say("ready: {}".format(os.path.relpath(python, os.getcwd())))
        return 0
    if command == "demo":
        return call([python, os.path.join("tools", "demo.py")] + args)
    statuses = [
        call([python, "-m", "ruff", "check", "."]),
        call([python, "-m", "ruff", "format", "--check", "."]),
    ]
    if command == "test":
        statuses.append(call([python, "-m", "pytest", "-q", "--durations=10"] + args))
    return next((status for status in statuses if status != 0), 0)


def call(command):
    return subprocess.call(command, cwd=ROOT, env=clean_environ())


class Environment:
    """The virtual environment of a checkout and the record of what was installed into it.

    The record is written last and removed first, so that it is there only if all that it says is.
    """

    def __init__(self, root):
        self.root = root
        self.directory = os.path.join(root, ".venv")
        self.record = os.path.join(self.directory, "ropevit-installed.json")
        self.marker = os.path.join(self.directory, "made-by-bootstrap")
        self.constraints = os.path.join(root, "requirements", "constraints.txt")
        self.python = os.path.join(self.directory, "bin", "python")

    def ensure(self, extras):
        """Bring the environment up to date with the extras asked for; returns its python."""
        state = self.read_state()
        wanted = sorted(set(extras) | set(state["extras"] if state else []))
        if state and state["digest"] == self.digest() and state["extras"] == wanted:
            return self.python
        started = time.time()
        if state is None:
            self.create()
            self.install(wanted, "some GB, which takes minutes")
        else:
            os.remove(self.record)
            self.install(wanted, "what is new")
        say("[3/3] trying it out")
        self.run("trying it out", [self.python, "-c", FIRST_IMPORTS])
        self.write_state(wanted)
        say("environment ready after {:.0f} s\n".format(time.time() - started))
        return self.python

    def read_state(self):
        """The record, or None where the environment must be made from scratch."""
        if not os.path.exists(self.record) or not os.path.exists(self.python):
            return None
        try:
            with open(self.record) as file:
                state = json.load(file)
        except ValueError:  # truncated, say by a full disk
            return None
        same = state["root"] == self.root and state["python"] == platform.python_version()
        return state if same else None

    def write_state(self, extras):
        state = {
            "root": self.root,
            "python": platform.python_version(),
            "digest": self.digest(),
            "extras": extras,
        }
        partial = self.record + ".partial"
        with open(partial, "w") as file:
            json.dump(state, file, indent=1)
        os.replace(partial, self.record)

    def digest(self):
        """Hash of everything that decides what is installed."""
        pyproject = os.path.join(self.root, "pyproject.toml")
        digest = hashlib.sha256(sys.executable.encode())
        for path in (self.constraints, pyproject, os.path.abspath(__file__)):
            with open(path, "rb") as file:
                digest.update(hashlib.sha256(file.read()).digest())
        return digest.hexdigest()

    def create(self):
        """Make an empty environment, in place of an unfinished one of ours."""
        if os.path.lexists(self.directory):
            if not os.path.exists(self.marker):
                raise BootstrapError(
                    "{} exists and was not made by this script; move it away, or install into "
                    "it yourself: pip install -c requirements/constraints.txt .".format(
                        self.directory
                    )
                )
            shutil.rmtree(self.directory)
        say("[1/3] creating .venv with Python {}".format(platform.python_version()))
        os.mkdir(self.directory)
        with open(self.marker, "w") as file:
            file.write("tools/bootstrap.py may delete and remake this directory.\n")
        self.run("creating .venv", [sys.executable, "-m", "venv", self.directory])

    def install(self, extras, amount):
        """Install the package, editable, with the tested versions of what it needs."""
        names = "".join(" + " + extra for extra in extras)
        step = "installing PyTorch and the mm packages" + names
        say("[2/3] {} ({})".format(step, amount))
        pip = [self.python, "-m", "pip", "--disable-pip-version-check", "install"]
        pip += ["--no-input", "--progress-bar=off", "-c", self.constraints]
        self.run(step, pip + ["pip", "setuptools"])
        links = tempfile.mkdtemp()
        try:
            write_opencv_alias(links, pinned_version(self.constraints, "opencv-python-headless"))
            project = self.root + ("[{}]".format(",".join(extras)) if extras else "")
            options = ["--no-build-isolation", "--find-links", links]
            self.run(step, pip + options + ["-e", project])
        finally:
            shutil.rmtree(links)

    def run(self, step, command):
        """Run one step with its output in a log and a sign of life; raises BootstrapError."""
        log = os.path.join(self.directory, "bootstrap.log")
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=clean_environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
        )
        lines = []
        reader = threading.Thread(target=lines.extend, args=(process.stdout,))
        reader.start()
        try:
            show_progress(process, lines)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            reader.join()
            with open(log, "a") as file:
                file.writelines(["$ " + " ".join(command) + "\n"] + lines)
        if process.returncode != 0:
            telling = [line for line in lines if line.startswith("ERROR")] or lines[-3:]
            sys.stderr.write("".join(telling[-5:]))
            raise BootstrapError(
                "the step '{}' failed with status {}; its whole output is in {}. Run the same "
                "command again to continue.".format(step, process.returncode, log)
            )


def show_progress(process, lines):
    """Until the process ends: one changing line on a terminal, a line every 30 s elsewhere."""
    started = time.time()
    terminal = sys.stdout.isatty()
    next_sign = started + (1 if terminal else 30)
    while True:
        try:
            process.wait(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            pass
        if time.time() < next_sign:
            continue
        next_sign += 1 if terminal else 30
        last = lines[-1].strip()[:60] if lines else ""
        text = "      {:4.0f} s  {}".format(time.time() - started, last)
        sys.stdout.write("\r{:<76}".format(text) if terminal else text + "\n")
        sys.stdout.flush()
    if terminal:
        sys.stdout.write("\r{:<76}\r".format(""))


def write_opencv_alias(directory, version):
    """Write a wheel named opencv-python that holds nothing and needs opencv-python-headless.

    mmengine and mmcv-lite ask for opencv-python, whose cv2 needs libGL; the headless package has
    the same cv2 without it, but not the name. pip prefers version+headless to the plain version.
    """
    name = "opencv_python-{}+headless".format(version)
    info = name + ".dist-info/"
    files = {
        info + "METADATA": "Metadata-Version: 2.1\nName: opencv-python\n"
        "Version: {0}+headless\nSummary: stands for opencv-python-headless\n"
        "Requires-Dist: opencv-python-headless=={0}\n".format(version),
        info + "WHEEL": "Wheel-Version: 1.0\nGenerator: bootstrap\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[info + "RECORD"] = "".join(path + ",,\n" for path in list(files) + [info + "RECORD"])
    path = os.path.join(directory, name + "-py3-none-any.whl")
    with zipfile.ZipFile(path, "w") as wheel:
        for member, text in files.items():
            wheel.writestr(member, text)
    return path


def pinned_version(constraints, name):
    """The version that the constraints file pins a package to."""
    with open(constraints) as file:
        for line in file:
            if line.startswith(name + "=="):
                return line.split("==")[1].split(";")[0].strip()
    raise BootstrapError("{} does not pin {}".format(constraints, name))


def say(text):
    print(text)
    sys.stdout.flush()  # also where the output goes into a pipe or a log


def clean_environ():
    """This process's environment without what would send pip or Python elsewhere."""
    away = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if key not in away}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
