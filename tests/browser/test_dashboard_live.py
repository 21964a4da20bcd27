"""optuna-dashboard on a study that runs: our pictures follow it, and a trial shows its note and its artifacts."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.browser

WAIT_MS = 60_000  # the dashboard asks its server every ten seconds or so


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    yield page
    context.close()


def test_pictures_follow_a_study_that_runs(page, running, served):
    running.finish_trial()
    page.goto(f"{served(running.folder)}/dashboard/studies/0")
    page.get_by_text("Which teacher assistant").first.wait_for()
    page.wait_for_function("document.body.innerText.includes('maxidisc, projected')")
    before = page.get_by_text("chosen", exact=True).count()
    assert before >= 1
    assert "infeasible" not in page.locator("body").inner_text()
    while running._waiting:
        running.finish_trial()
    page.wait_for_function("document.body.innerText.includes('infeasible')")  # without a reload
    for title in ("Metric against scale", "Which λ chooses which assistant", "Kept heads by layer", "Cost so far"):
        assert page.get_by_text(title).count() >= 1, title


def test_a_trial_shows_its_note_and_its_artifacts(page, running, served):
    running.finish_trial()
    address = served(running.folder)
    page.goto(f"{address}/dashboard/studies/0/trials?numbers=0")
    page.get_by_text("The candidate of sparsity 0.3").wait_for()
    for name in ("candidate.json", "kept-by-layer.png", "confusion.csv"):
        page.get_by_text(name).first.wait_for()
    page.wait_for_function("[...document.images].some(i => i.src.includes('/artifacts/') && i.naturalWidth > 100)")
    source = page.evaluate("[...document.images].find(i => i.src.includes('/artifacts/')).src")
    answer = page.request.get(source)
    assert answer.ok
    assert answer.headers["content-type"] == "image/png"
    assert answer.body().startswith(b"\x89PNG")


def test_the_study_s_note_says_what_is_asked_and_found_so_far(page, running, served):
    running.finish_trial()
    page.goto(f"{served(running.folder)}/dashboard/studies/0/note")
    page.get_by_text("Which teacher assistant should stand between").wait_for()
    page.get_by_text("the study chose the teacher assistant of sparsity 0.3").wait_for()


def test_studies_of_two_folders_are_compared(page, running, served, make, tmp_path):
    running.finish_trial()
    (tmp_path / "other").mkdir()
    other = type(running)(tmp_path / "other", make)
    other.finish_trial()
    page.goto(f"{served(running.folder, other.folder)}/dashboard/compare-studies?ids=0,1")
    page.get_by_text("mrpc-mrpc (study)").first.wait_for()
    page.get_by_text("mrpc-mrpc (other)").first.wait_for()
