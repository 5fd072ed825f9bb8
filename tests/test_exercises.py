"The exercises as a learner meets them: from the package, with a progress file of their own."

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from fmtut import exercises
from fmtut.environment import CHAPTERS, chapter_state
from fmtut.exercises import Question, question_ids, question_widget, quiz_text

ROOT = Path(__file__).resolve().parent.parent
LESSONS = [chapter for chapter in CHAPTERS.values() if chapter_state(chapter) == "lesson"]


def checks_of(chapter):
    "The module of a chapter's exercises."
    return importlib.import_module(f"fmtut.checks.{chapter.name}")


@pytest.mark.parametrize("chapter", LESSONS, ids=lambda chapter: chapter.number)
def test_quiz_gives_a_reason_for_every_choice(chapter):
    questions = checks_of(chapter).QUIZ
    assert len(questions) == 6
    for question in questions:
        assert len(question.wrong) >= 2 and question.right not in question.wrong, question.text
        reasons = [question.why, *question.wrong.values()]
        assert len(set(reasons)) == len(reasons) and all(len(re.findall(r"\w+", reason)) >= 4 for reason in reasons), question.text


@pytest.mark.parametrize("chapter", LESSONS, ids=lambda chapter: chapter.number)
def test_right_choice_does_not_stand_out(chapter):
    for question in checks_of(chapter).QUIZ:
        assert len(question.right) <= 1.3 * max(map(len, question.wrong)) + 6, f"the right choice is by far the longest: {question.text}"


@pytest.mark.parametrize("chapter", LESSONS, ids=lambda chapter: chapter.number)
def test_exercises_have_hints_that_do_not_answer(chapter):
    for id, exercise in checks_of(chapter).EXERCISES.items():
        assert id.startswith(chapter.number + ".") and len(exercise.hint.split()) >= 4, id


@pytest.mark.parametrize("chapter", LESSONS, ids=lambda chapter: chapter.number)
def test_stored_quiz_is_the_one_that_is_checked(chapter):
    notebook = nbformat.read(ROOT / "nbs" / f"{chapter.number}_{chapter.name}.ipynb", as_version=4)
    texts = [output.data["text/plain"] for cell in notebook.cells if cell.cell_type == "code" and "quiz(" in cell.source
             for output in cell.outputs if "data" in output and "text/plain" in output.data]
    assert quiz_text(chapter.number) in texts, "run the chapter again: its stored quiz is another one"


def shown_by(id):
    "All HTML that a question shows: its choices, and the reason for each letter."
    heading, buttons, reason = question_widget(id).children
    texts = [heading.value]
    for button in buttons.children:
        button.click()
        texts.append(reason.value)
    return texts


@pytest.mark.parametrize("chapter", LESSONS, ids=lambda chapter: chapter.number)
def test_widget_shows_no_backtick(chapter, tmp_path, monkeypatch):
    monkeypatch.setenv("FMTUT_HOME", str(tmp_path))
    assert [text for id in question_ids(chapter.number) for text in shown_by(id) if "`" in text] == []


def test_widget_shows_code_and_no_tag(tmp_path, monkeypatch):
    monkeypatch.setenv("FMTUT_HOME", str(tmp_path))
    question = Question("Is `a < b` code, and `c`?", "yes: `a`", "a letter", {"<b>": "`<b>` is bold"})
    monkeypatch.setattr(exercises, "choices", lambda id: (question, {"a": question.right, "b": "<b>"}))
    heading, _, wrong = shown_by("01.q1")
    assert "Is <code>a &lt; b</code> code, and <code>c</code>?" in heading and "a) yes: <code>a</code>" in heading and "b) &lt;b&gt;" in heading
    assert wrong == "<b>b: no.</b> <code>&lt;b&gt;</code> is bold"


def test_lessons_are_loaded_when_asked():
    code = "import fmtut, sys; fmtut.check; print(sorted(name for name in sys.modules if name.startswith('fmtut.checks') or name == 'torch'))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_threads_and_processes_leave_a_whole_file(tmp_path):
    code = """if True:
        import threading
        from fmtut.exercises import record
        for number in range(3): threading.Thread(target=lambda id=f"01.{number}": [record(id, True) for _ in range(20)]).start()"""
    environment = os.environ | {"FMTUT_HOME": str(tmp_path)}
    children = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) for _ in range(3)]
    assert all(child.communicate()[0] == b"" for child in children), "a half-written file was read"
    assert json.loads((tmp_path / "progress.json").read_text()) and [path.name for path in tmp_path.iterdir()] == ["progress.json"]
