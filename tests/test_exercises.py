"The exercises as a learner meets them: from the package, with a progress file of their own."

import importlib
import re

import pytest

from fmtut.environment import CHAPTERS, chapter_state

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


def test_lessons_are_loaded_when_asked():
    import subprocess
    import sys

    code = "import fmtut, sys; fmtut.check; print(sorted(name for name in sys.modules if name.startswith('fmtut.checks') or name == 'torch'))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
