"What a user gets who installs the package instead of cloning it."

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_wheel_holds_package_command_and_requirements(tmp_path):
    source = tmp_path / "source" # a copy: building leaves a folder behind that later builds would pick up
    shutil.copytree(ROOT / "fmtut", source / "fmtut")
    for name in "settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE":
        shutil.copy(ROOT / name, source)
    built = subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source)],
                           capture_output=True, text=True, cwd=tmp_path)
    if built.returncode and "No matching distribution found for setuptools" in built.stdout + built.stderr:
        pytest.skip("no network to fetch the build tool")
    assert built.returncode == 0, built.stderr
    wheel, = tmp_path.glob("fmtut-*.whl")
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    modules = {path.relative_to(ROOT).as_posix() for kind in ("*.py", "*.json") for path in (ROOT / "fmtut").rglob(kind)}
    assert modules <= set(names) and not any(name.startswith(("tests/", "nbs/")) for name in names)
    metadata, = [archive.read(name).decode() for name in names if name.endswith("/METADATA")]
    entry, = [archive.read(name).decode() for name in names if name.endswith("entry_points.txt")]
    settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    required = [line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert len(required) == len(settings["DEFAULT"]["requirements"].split())
    assert "Requires-Python: >=3.11" in metadata and "fmtut=fmtut.cli:main" in entry.replace(" ", "")
    archive.extractall(tmp_path / "site")
    code = """if True:
        import fmtut
        fmtut.solution("46.2"); fmtut.check("46.2", 34); fmtut.solution("46.2"); fmtut.hint("46.2"); fmtut.quiz("46")
        from fmtut.environment import load_result
        assert len(load_result("47_ner")["dev"]["tags"]) == 1000 and len(fmtut.progress()) >= 10"""
    environment = os.environ | {"FMTUT_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True, env=environment)
    assert "46.2: try it first" in done.stdout and "46.2: right." in done.stdout and "def solve_46_2():" in done.stdout
    assert "Answer with check('46.q1', 'a')." in done.stdout
    code = "import fmtut, fmtut.cli; print(fmtut.__file__); raise SystemExit(fmtut.cli.main(['--version']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True)
    assert str(tmp_path) in done.stdout.splitlines()[0] and done.stdout.splitlines()[1].startswith("fmtut ")
