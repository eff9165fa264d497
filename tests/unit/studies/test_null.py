"""Studies of the null model, on which there is nothing to find."""

import pytest

from tests.unit.studies.made import material
from workbench.studies import list_studies, make_study

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_studies")]
NAMES = [record.name for record in list_studies()]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "time"])
def test_on_the_null_model_no_study_finds_anything(name):
    study = make_study(name, material("null"))
    assert len(study.tests)
    assert study.found == ()
