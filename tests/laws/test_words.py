"""Laws for the eye and for other programs."""

import json

import pytest

from equipoise.references import REFERENCES, cite

NAMES = ["linear tail", "layer norm", "partly rotary", "gatv2", "autoencoder", "grouped query", "degree two", "gelu"]


@pytest.mark.parametrize("name", NAMES)
def test_tables_have_a_row_for_each_law(derived, name):
    laws = derived(name)
    table = laws.table()
    assert list(table["law"]) == [law.name for law in laws]
    assert list(table["count"]) == [law.count for law in laws]
    assert int(table["count"].sum()) == laws.conserved
    assert laws._repr_html_().count("<tr") == len(laws) + 1


@pytest.mark.parametrize("name", NAMES)
def test_json_names_members_and_degrees(derived, name):
    laws = derived(name)
    plain = json.loads(laws.to_json())
    assert [law["conserved"] for law in plain] == [law.statement for law in laws]
    for law, read in zip(plain, laws, strict=True):
        assert {member["parameter"] for member in law["members"]} == set(read.parameters)


def test_the_degree_of_a_power_is_written(derived):
    (law,) = derived("degree two")
    assert law.statement == "‖0.weight[i]‖² + 0.bias[i]² - 2 ‖2.weight[:, i]‖²"
    assert "2\\,\\|" in derived("degree two").to_latex()


@pytest.mark.parametrize("name", NAMES)
def test_latex_is_balanced(derived, name):
    latex = derived(name).to_latex()
    assert latex.count("{") == latex.count("}")
    assert latex.count("$") % 2 == 0
    assert latex.count("\\\\") == len(derived(name)) + 1
    assert "_" not in latex.replace("\\_", "")


def test_every_kind_of_law_explains_itself_with_its_source(derived):
    seen = {}
    for name in NAMES:
        for law in derived(name):
            seen[law.kind] = law.explain()
    assert set(seen) == {"linear", "vertex", "blocks", "scalar", "shift", "antisymmetric"}
    for words in seen.values():
        assert "Conserved by gradient flow: " in words
        assert "source: " in words
    keys = [key for words in seen.values() for key in REFERENCES if f"({key})" in words]
    assert "du2018algorithmic" in keys
    assert all("@" in cite(key) for key in keys)


def test_inexact_laws_say_why(derived):
    law = derived("layer norm").named("scale of 0.weight")
    assert not law.exact
    assert "eps = 1e-05" in law.explain()
    assert not derived("layer norm").table().set_index("law")["exact"]["scale of 0.weight"]


def test_no_law_is_said_so(derived):
    assert str(derived("gelu")) == ""
    assert derived("gelu").explain().strip() == (
        "4 uses of 4 parameters seen; no law through: gelu (1); in no law: 0.weight, 0.bias, 2.weight, 2.bias"
    )
