"""Conversions: made once per node and content, whole or not at all."""

import json
import sys
import threading
from pathlib import Path

import pytest

from backends.prepare import checkpoints


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 512}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


class Maker:
    """Fills a folder and counts how often it was asked to."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, folder: Path) -> None:
        self.made += 1
        (folder / "model.bin").write_text(f"made {self.made}")


def convert(model, maker, cache, **parameters) -> Path:
    return checkpoints.converted(model, "test", parameters, maker, cache, lambda text: None)


def test_a_conversion_is_made_once_and_says_what_it_is(model, tmp_path):
    maker = Maker()
    folder = convert(model, maker, tmp_path / "cache", bits=4)
    assert convert(model, maker, tmp_path / "cache", bits=4) == folder
    assert maker.made == 1
    assert (folder / "model.bin").read_text() == "made 1"
    assert (folder / "config.json").read_text() == (model / "config.json").read_text()
    assert not (folder / "model.safetensors").exists()
    assert checkpoints.note(folder)["parameters"] == {"bits": 4}


def test_a_conversion_has_the_files_that_describe_the_model_and_no_index_of_its_weights(model, tmp_path):
    for name in ("merges.txt", "spiece.model", "chat_template.jinja", "model.safetensors.index.json"):
        (model / name).write_text(name)
    (model / "onnx.model").mkdir()
    (model / "special_tokens_map.json").symlink_to(model / "blob that was deleted")
    folder = convert(model, Maker(), tmp_path / "cache")
    made = {"model.bin", "conversion.json"}
    described = {"config.json", "tokenizer.json", "merges.txt", "spiece.model", "chat_template.jinja"}
    assert {path.name for path in folder.iterdir()} == made | described


def test_other_parameters_other_weights_or_another_tokenizer_are_another_conversion(model, tmp_path):
    maker, folders = Maker(), set()
    folders.add(convert(model, maker, tmp_path / "cache", bits=4))
    folders.add(convert(model, maker, tmp_path / "cache", bits=8))
    (model / "model.safetensors").write_bytes(b"others!")
    folders.add(convert(model, maker, tmp_path / "cache", bits=4))
    (model / "tokenizer.json").write_text('{"version": 1}')
    folders.add(convert(model, maker, tmp_path / "cache", bits=4))
    assert len(folders) == maker.made == 4


def test_the_same_content_elsewhere_is_the_same_conversion(model, tmp_path):
    maker = Maker()
    other = tmp_path / "elsewhere"
    other.mkdir()
    for path in model.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert convert(model, maker, tmp_path / "cache") == convert(other, maker, tmp_path / "cache")
    assert maker.made == 1


def test_a_conversion_that_failed_leaves_nothing_to_be_taken_for_one(model, tmp_path):
    def dies(folder: Path) -> None:
        (folder / "model.bin").write_text("half")
        raise checkpoints.ConversionFailed("no")

    with pytest.raises(checkpoints.ConversionFailed):
        convert(model, dies, tmp_path / "cache")
    maker = Maker()
    folder = convert(model, maker, tmp_path / "cache")
    assert maker.made == 1
    assert (folder / "model.bin").read_text() == "made 1"


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(checkpoints.ConversionFailed, match=r"has no config\.json"):
        convert(tmp_path / "nothing", Maker(), tmp_path / "cache")


def test_of_two_at_the_same_time_one_waits(model, tmp_path):
    begun, go_on = threading.Event(), threading.Event()
    maker, told, found = Maker(), [], []

    def slow(folder: Path) -> None:
        begun.set()
        go_on.wait(10)
        maker(folder)

    def ask(make) -> None:
        found.append(checkpoints.converted(model, "test", {}, make, tmp_path / "cache", tell))

    def tell(text: str) -> None:
        told.append(text)
        if "waiting" in text:
            go_on.set()

    first = threading.Thread(target=ask, args=(slow,))
    first.start()
    begun.wait(10)
    second = threading.Thread(target=ask, args=(maker,))
    second.start()
    first.join(10)
    second.join(10)
    assert found[0] == found[1]
    assert maker.made == 1
    assert any("waiting" in text for text in told)


def test_digest_reads_a_file_again_only_when_it_has_changed(model, tmp_path, monkeypatch):
    read = []
    real = checkpoints.file_digest
    monkeypatch.setattr(checkpoints, "file_digest", lambda path: read.append(path.name) or real(path))
    first = checkpoints.digest(model, tmp_path / "cache")
    assert len(read) == 3
    assert checkpoints.digest(model, tmp_path / "cache") == first
    assert len(read) == 3
    (model / "config.json").write_text("{}")
    assert checkpoints.digest(model, tmp_path / "cache") != first
    assert read[3:] == ["config.json"]


def test_digest_believes_the_names_of_the_hub_cache(model, tmp_path, monkeypatch):
    """Its large files are links to blobs called by their SHA-256: reading a 7B model again would take a minute."""
    content = b"many gigabytes"
    (tmp_path / "plain").write_bytes(content)
    name = checkpoints.file_digest(tmp_path / "plain")
    (tmp_path / name).write_bytes(content)
    (model / "model.safetensors").write_bytes(content)
    plain = checkpoints.digest(model, tmp_path / "cache")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(tmp_path / name)
    monkeypatch.setattr(checkpoints, "file_digest", lambda path: "0" if path.name == name else pytest.fail(str(path)))
    assert checkpoints.digest(model, tmp_path / "cache") == plain


def test_a_program_is_heard_and_its_last_words_are_the_error(tmp_path):
    told: list[str] = []
    log = tmp_path / "log"
    checkpoints.execute([sys.executable, "-c", "print('progress: half'); print('noise')"], "it", log, told.append)
    assert told == ["half"]
    assert "noise" in log.read_text()
    command = [sys.executable, "-c", "import sys; print('so far'); sys.exit('no such type q9')"]
    with pytest.raises(checkpoints.ConversionFailed, match=r"it failed \(exit status 1\): no such type q9; log: .*log"):
        checkpoints.execute(command, "it", log, told.append)


def test_programs_ask_nothing_of_the_hub(tmp_path):
    log = tmp_path / "log"
    code = "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if k.startswith('HF_')}))"
    checkpoints.execute([sys.executable, "-c", code], "it", log, print)
    assert json.loads(log.read_text().splitlines()[-1]).items() >= {"HF_HUB_OFFLINE": "1"}.items()


def test_a_converter_does_not_import_from_the_orchestrators_path(tmp_path, monkeypatch):
    (tmp_path / "ctranslate2.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    checkpoints.execute([sys.executable, "-c", "import sys; print(sys.path)"], "it", tmp_path / "log", print)
    assert str(tmp_path) not in (tmp_path / "log").read_text().splitlines()[-1]
