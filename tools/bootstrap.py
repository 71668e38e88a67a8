"""Create the project's virtual environment and run the demo or the tests in it.

    python3 tools/bootstrap.py demo [ARGS...]    examples/demo.py with ARGS
    python3 tools/bootstrap.py test [ARGS...]    lint, then pytest with ARGS on all cores
    python3 tools/bootstrap.py lint              ruff and mypy
    python3 tools/bootstrap.py env [EXTRA...]    only the environment, with extras of pyproject.toml

MM=onedl in the environment installs the fork's packages, in .venv-onedl, instead of OpenMMLab's, in
.venv. Needs only the standard library. Versions come from requirements/, names from pyproject.toml.
A second call reuses the environment; an interrupted or outdated one is repaired. The file parses on
old Pythons 3, so that it can report what is missing.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile

MINIMUM = (3, 11)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# By the extra of pyproject.toml: the directory and the constraints of its environment.
STACKS = {"mm": (".venv", "constraints.txt"), "onedl": (".venv-onedl", "constraints-onedl.txt")}
FIRST_IMPORTS = "import ropevit_mmdet, cv2, torch, torchvision, mmdet.apis"
MAX_WORKERS = 8  # of pytest; each needs about 2 GB of memory


class BootstrapError(Exception):
    """Something the user can fix; shown as one line."""


def main(argv):
    command = argv[0] if argv else "env"
    stack = os.environ.get("MM") or "mm"
    if command not in ("env", "demo", "test", "lint") or stack not in STACKS:
        is_help = command in ("-h", "--help")
        (sys.stdout if is_help else sys.stderr).write(__doc__)
        return 0 if is_help else 2
    extras = {"env": argv[1:], "demo": []}.get(command, ["test"])
    try:
        check_interpreter(sys.version_info)
        python = Environment(ROOT, stack).ensure(extras)
        return run_command(command, python, argv[1:])
    except BootstrapError as error:
        sys.stderr.write("error: {}\n".format(error))
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; run the same command again to continue\n")
        return 130


def check_interpreter(version):
    """Raise BootstrapError if this Python is too old or cannot create virtual environments."""
    if tuple(version[:2]) < MINIMUM:
        raise BootstrapError(
            "needs Python {}.{} or newer, this is {}.{} ({}); name another one, e.g. "
            "make PYTHON=python3.12".format(*MINIMUM + tuple(version[:2]) + (sys.executable,))
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise BootstrapError(
            "this Python ({}) cannot create virtual environments; on Debian and Ubuntu: "
            "apt install python{}.{}-venv".format(sys.executable, version[0], version[1])
        ) from None


def run_command(command, python, args):
    """Run the command; returns the first exit status that is not 0."""
    if command == "env":
        print("ready: {}".format(os.path.relpath(python)), flush=True)
        return 0
    if command == "demo":
        return call([python, os.path.join("examples", "demo.py")] + args)
    statuses = [
        call([python, "-m", "ruff", "check", "."]),
        call([python, "-m", "ruff", "format", "--check", "."]),
        call([python, "-m", "mypy"]),
    ]
    if command == "test":
        workers = min(len(os.sched_getaffinity(0)), MAX_WORKERS)
        options = ["-q", "--durations=10", "-n", str(workers), "--dist", "worksteal"]
        statuses.append(call([python, "-m", "pytest"] + options + args, OMP_NUM_THREADS="1"))
    return next((status for status in statuses if status != 0), 0)


def call(command, **variables):
    return subprocess.call(command, cwd=ROOT, env=dict(clean_environ(), **variables))


class Environment:
    """A virtual environment of a checkout and the record of what was installed into it.

    The record is written last and removed first: it exists only next to a complete environment.
    """

    def __init__(self, root, stack="mm"):
        name, constraints = STACKS[stack]
        self.root, self.stack = root, stack
        self.directory = os.path.join(root, name)
        self.record = os.path.join(self.directory, "ropevit-installed.json")
        self.log = os.path.join(self.directory, "bootstrap.log")
        self.constraints = os.path.join(root, "requirements", constraints)
        self.python = os.path.join(self.directory, "bin", "python")

    def ensure(self, extras):
        """Bring the environment up to date with the extras; returns its python."""
        place, sources = [self.root, sys.executable, platform.python_version()], self.sources()
        record, complete = {}, os.path.exists(self.record) and os.path.exists(self.python)
        if complete:
            with open(self.record) as file:
                text = file.read()
            record = json.loads(text) if text.endswith("}") else {}  # else it was cut off
        usable = record.get("place") == place
        extras = sorted(set(extras).union([self.stack], record["extras"] if usable else []))
        expected = {"place": place, "sources": sources, "extras": extras}
        if record == expected:
            return self.python
        started = time.time()
        if usable:
            os.remove(self.record)
        else:
            self.create()
        self.install(extras)
        print("[3/3] importing the packages", flush=True)
        self.run("importing the packages", [self.python, "-c", FIRST_IMPORTS])
        with open(self.record, "w") as file:
            json.dump(expected, file)
        print("environment ready after {:.0f} s\n".format(time.time() - started), flush=True)
        return self.python

    def sources(self):
        """Hash of everything that decides what is installed."""
        digest = hashlib.sha256()
        names = ["requirements/constraints.txt", self.constraints, "pyproject.toml", "setup.py"]
        for name in names:
            with open(os.path.join(self.root, name), "rb") as file:
                digest.update(hashlib.sha256(file.read()).digest())
        return digest.hexdigest()

    def create(self):
        """Create an empty environment, in place of an unfinished one of ours."""
        if os.path.lexists(self.directory):
            if not os.path.exists(self.log):
                problem = "{} was not made by this script; move it away"
                raise BootstrapError(problem.format(self.directory))
            shutil.rmtree(self.directory)
        name = os.path.basename(self.directory)
        print(
            "[1/3] creating {} with Python {}".format(name, platform.python_version()), flush=True
        )
        os.mkdir(self.directory)
        self.run("creating " + name, [sys.executable, "-m", "venv", self.directory])

    def install(self, extras):
        """Install the package, editable, with the tested versions of its requirements."""
        step = "installing PyTorch and " + ", ".join(extras)
        print("[2/3] {} (some GB the first time, which takes minutes)".format(step), flush=True)
        pip = [self.python, "-m", "pip", "--disable-pip-version-check", "install"]
        pip += ["--no-input", "--progress-bar=off", "-c", self.constraints]
        self.run(step, pip + ["pip", "setuptools"])
        links = tempfile.mkdtemp()
        try:
            write_opencv_alias(links, os.path.join(self.root, "requirements", "constraints.txt"))
            # Builds are isolated: onedl-mmcv compiles its ops wherever it can import torch.
            project = "{}[{}]".format(self.root, ",".join(extras))
            self.run(step, pip + ["--find-links", links, "-e", project])
        finally:
            shutil.rmtree(links)

    def run(self, step, command):
        """Run one step, its output in a log; raises BootstrapError."""
        with open(self.log, "a") as file:
            file.write("$ " + " ".join(command) + "\n")
            file.flush()
            start = file.tell()
            environ = clean_environ()
            status = subprocess.call(command, cwd=self.root, env=environ, stdout=file, stderr=file)
        if status != 0:
            with open(self.log) as file:
                file.seek(start)
                lines = file.readlines()
            errors = [line for line in lines if line.startswith("ERROR")] or lines[-3:]
            sys.stderr.write("".join(errors[-5:]))
            raise BootstrapError(
                "the step '{}' failed with status {}; its full output is in {}. Run the same "
                "command again to continue.".format(step, status, self.log)
            )


def write_opencv_alias(directory, constraints):
    """Write an empty wheel named opencv-python that requires opencv-python-headless.

    mmengine and mmcv-lite require opencv-python, whose cv2 needs libGL; the headless package has
    the same cv2 without it under another name. pip prefers version+headless to the plain version.
    """
    pin = "opencv-python-headless=="
    with open(constraints) as file:
        version = next(line.split("==")[1].strip() for line in file if line.startswith(pin))
    name = "opencv_python-{}+headless".format(version)
    files = {
        "METADATA": "Metadata-Version: 2.1\nName: opencv-python\nVersion: {0}+headless\n"
        "Requires-Dist: opencv-python-headless=={0}\n".format(version),
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    members = list(files) + ["RECORD"]
    files["RECORD"] = "".join(name + ".dist-info/" + member + ",,\n" for member in members)
    path = os.path.join(directory, name + "-py3-none-any.whl")
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(name + ".dist-info/" + file, text)
    return path


def clean_environ():
    """The environment without variables that redirect pip or Python."""
    names = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if key not in names}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
