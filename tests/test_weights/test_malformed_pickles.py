"""Pickles that forge numpy values, or make of a few bytes what has no end: refused, nothing made.

What is forged here would be read from any address, or end the process: no test looks into it.
"""

import json
import pickle
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from ropevit_mmdet.compat.numpy_values import NotPlainError, PlainArray, PlainDtype
from ropevit_mmdet.compat.plain_pickle import unpickle
from ropevit_mmdet.compat.reading import read_torch_file
from ropevit_mmdet.evaluation.result_file import read_results
from ropevit_mmdet.weights.detector_checkpoint import read_detector_checkpoint
from tests.malformed_files import HERE, PROTOCOL, Payload, saved_with
from tests.processes import ROOT

STATE = {"bbox_head.w": torch.ones(2)}


def refused(read, path, words):
    with pytest.raises(ValueError, match=words) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 1000


# ---- numpy values that are none


class Forged(Payload):
    """As Payload; what is made then takes a state."""

    def __init__(self, function, *arguments, state):
        self.call = function, arguments, state


EMPTY, SCALAR = (value.__reduce__()[0] for value in (np.zeros(0), np.float64(0)))
ADDRESS = b"A" * 8
FLAGLESS = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)


def forged_dtype(state=FLAGLESS):
    """Eight bytes of one field, which is an object, though no flag says that there is one."""
    return Forged(np.dtype, "V8", False, True, state=state)


def filled(dtype, content=ADDRESS):
    return Forged(EMPTY, np.ndarray, (0,), b"b", state=(1, (1,), dtype, False, content))


F8 = "f8", False, True
FORGED = {
    "an array of addresses": Payload(np.ndarray, (1,), "O", ADDRESS),
    "an array of numbers": Payload(np.ndarray, (1,), "f8", ADDRESS),
    "an array of another shape": Payload(EMPTY, np.ndarray, (1,), b"O"),
    "an array of a type of numbers": Payload(EMPTY, np.float64, (0,), b"b"),
    "objects": np.array(["x", None], dtype=object),
    "text": np.array(["x"]),
    "records": np.zeros(2, [("a", "f4"), ("b", "i2")]),
    "dates": np.zeros(2, "M8[s]"),
    "a dtype that hides objects": filled(forged_dtype()),
    "a number of such a dtype": Payload(SCALAR, forged_dtype(), ADDRESS),
    "a dtype of a field in brackets": Payload(np.dtype, [("a", "O")]),
    "a dtype of text": Payload(np.dtype, "O,f4"),
    "numbers that turn into objects": filled(
        Forged(np.dtype, *F8, state=(3, "<", None, ("a",), {"a": (np.dtype("O"), 0)}, -1, -1, 0))
    ),
    "numbers with the flags of objects": filled(
        Forged(np.dtype, *F8, state=(3, "<", None, None, None, -1, -1, 63))
    ),
    "numbers of another size": filled(
        Forged(np.dtype, *F8, state=(3, "<", None, None, None, 80, 8, 0)), bytes(80)
    ),
    "a dtype in dtypes": Payload(np.dtypes.Float64DType),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
@pytest.mark.parametrize("place", ["palette", "log"])
@pytest.mark.parametrize("archive", [True, False])
def test_forged_numpy_values_in_checkpoints(case, place, archive, tmp_path):
    value, path = FORGED[case], tmp_path / "forged.pth"
    log = HistoryBuffer([1.0], [1])
    log._log_history = value
    content = dict(
        state_dict=STATE,
        meta=dict(dataset_meta=dict(classes=["a"], palette=value if place == "palette" else None)),
        message_hub=dict(log_scalars=dict(loss=log if place == "log" else None)),
    )
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    for read in (read_torch_file, lambda path: read_detector_checkpoint(str(path))):
        refused(read, path, r"forged\.pth is refused: it holds more .*\(GLOBAL numpy")


@pytest.mark.parametrize("case", FORGED)
@pytest.mark.parametrize("protocol", [2, 4])
def test_forged_numpy_values_in_results(case, protocol, tmp_path):
    value, path = FORGED[case], tmp_path / "forged.pkl"
    found = dict(bboxes=value, labels=np.zeros(1), scores=np.zeros(1))
    path.write_bytes(pickle.dumps([dict(img_id=1, pred_instances=found)], protocol=protocol))
    refused(read_results, path, r"forged\.pkl is refused: it holds (numpy values of ano|numpy\.)")


CODES = ["b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8))]
CODES += ["f2", "f4", "f8", "c8", "c16"]


@pytest.mark.parametrize("order", "<>")
def test_plain_numpy_values_are_read(order, tmp_path):
    """Also written again: as numpy's own, which anything else reads."""
    values = []
    for code in CODES:
        array = np.arange(6).reshape(2, 3).astype(code).astype(order + code)
        values += [array, np.asfortranarray(array), array[1, 2], array.ravel()[1:2]]
    torch.save(values, tmp_path / "first.pth")
    read = read_torch_file(tmp_path / "first.pth")
    torch.save(read, tmp_path / "second.pth")
    again = torch.load(tmp_path / "second.pth", weights_only=False)
    plain = unpickle(pickle.dumps(values, protocol=2), "a pickle")
    for value, *others in zip(values, read, again, plain):
        for other in others:
            assert other.dtype == value.dtype.newbyteorder("=")  # as numpy itself has it
            np.testing.assert_array_equal(other, value)
            assert isinstance(other, np.ndarray) == isinstance(value, np.ndarray)
        assert type(others[1]) is type(value)


def test_what_is_made_of_an_array_is_numpys_own():
    array = PlainArray.empty(PlainArray, (0,), b"b")
    array.__setstate__((1, (3,), PlainDtype("f8"), False, np.arange(3.0).tobytes()))
    assert type(array + 1) is np.ndarray and type(np.append(array, 3)) is np.ndarray
    assert type(array.sum()) is np.float64 and array.mean() == 1


def test_an_array_is_filled_once():
    """A tensor may share its memory by then."""
    array = PlainArray.empty(PlainArray, (0,), b"b")
    state = (1, (1,), PlainDtype("f8"), False, ADDRESS)
    array.__setstate__(state)
    with pytest.raises(NotPlainError):
        array.__setstate__(state)


# ---- what has no end


LEVELS = 40  # each doubles what there is
ENCODE = b"c_codecs\nencode\n"
KEPT = b"q\xc8"  # what is on the stack, in place 200 of the memo
AGAIN = b"h\xc8"
EMPTY_LISTS = b"".join(b"]q%c" % place for place in range(200, 200 + LEVELS))
# Operations of a pickle that leave one value.
BOMBS = {
    "a key of tuples": b"}K\1" + KEPT + (AGAIN + b"\x86" + KEPT) * LEVELS + b"K\5s",
    "lists of lists": b"](]" + KEPT + (b"](" + 2 * AGAIN + b"e" + KEPT) * LEVELS + b"e",
    "dicts of dicts": b"](}" + KEPT
    + (b"}(K\1" + AGAIN + b"K\2" + AGAIN + b"u" + KEPT) * LEVELS + b"e",
    "lists that hold one another before they are filled": b"](" + EMPTY_LISTS
    + b"".join(b"h%c" % i + 2 * (b"h%ca" % (i + 1)) for i in range(200, 199 + LEVELS)) + b"e",
    "a list of itself": b"]" + KEPT + AGAIN + b"a",
    "digits of digits": ENCODE * LEVELS + ENCODE
    + b"X\1\0\0\0aX\6\0\0\0latin1\x86R" + b"X\3\0\0\0hex\x86R" * LEVELS,
    "a million dicts": b"](" + b"}" * 10**6 + b"e",
    "a million tuples": b")" + b"\x85" * 10**6,
    "a text 100,000 times": b"](X\x10\x27\0\0" + b"x" * 10**4 + KEPT + AGAIN * 10**5 + b"e",
    "a key of doubled tuples": b"}K\1" + b"2\x86" * LEVELS + b"K\5s",
}  # fmt: skip
READING = """
import json, pathlib, resource, sys, time
from ropevit_mmdet.compat.plain_pickle import unpickle
from ropevit_mmdet.compat.reading import read_torch_file

found = {}
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        unpickle(path.read_bytes(), str(path)) if path.suffix == ".pkl" else read_torch_file(path)
        message = "read"
    except ValueError as error:
        message = str(error)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    found[path.name] = message, grown, time.monotonic() - start
print(json.dumps(found))
"""


def test_what_has_no_end_is_refused_in_time(tmp_path):
    """In the formats of torch and in a plain pickle; time and memory are those of one process."""
    for name, operations in BOMBS.items():
        content = dict(state_dict=STATE, padding="x" * 600, meta=HERE)
        (tmp_path / f"{name}.pth").write_bytes(saved_with(operations, content))
        older = saved_with(operations, content, _use_new_zipfile_serialization=False)
        (tmp_path / f"{name}, older.pth").write_bytes(older)
        (tmp_path / f"{name}.pkl").write_bytes(
            PROTOCOL + b"](X\x58\2\0\0" + b"x" * 600 + operations + b"e."
        )
    done = subprocess.run(
        [sys.executable, "-c", READING, str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found) == 3 * len(BOMBS)
    for name, (message, megabytes, seconds) in found.items():
        assert "is refused: its values, of so few bytes, could take any" in message, name
        assert name in message and "\n" not in message
        assert megabytes < 200 and seconds < 10, (name, megabytes, seconds)


def test_a_bomb_in_a_storage_of_results(tmp_path):
    content = saved_with(BOMBS["a key of tuples"], dict(padding="x" * 600, a=HERE),
                         _use_new_zipfile_serialization=False)  # fmt: skip
    path = tmp_path / "results.pkl"
    path.write_bytes(pickle.dumps([Payload(torch.storage._load_from_bytes, content)]))
    start = time.monotonic()
    refused(read_results, path, "is refused: it holds a damaged tensor")
    assert time.monotonic() - start < 10


def test_what_is_shared_within_reason_is_read(tmp_path):
    """Settings that all groups of an optimizer share, names, random states, long logs."""
    betas, names = (0.9, 0.999), [f"class {i}" for i in range(1000)]
    groups = [dict(params=[i], betas=betas, lr=1e-4, names=names) for i in range(200)]
    content = dict(
        state_dict=STATE,
        optimizer=dict(param_groups=groups),
        random=[random.Random(i).getstate() for i in range(64)],
        class_to_idx={f"{i:05}_Genus_species": i for i in range(20_000)},
        log=HistoryBuffer(np.random.default_rng(0).random(10**5), np.ones(10**5)),
    )
    torch.save(content, tmp_path / "sound.pth")
    found = read_torch_file(tmp_path / "sound.pth")
    for key in ("optimizer", "random", "class_to_idx"):
        assert found[key] == content[key]
    np.testing.assert_array_equal(found["log"].data[0], content["log"].data[0])
