import dataclasses
from pathlib import Path

from certbench import config, plugins
from certbench.report import reference

ROOT = Path(__file__).resolve().parents[2]


def test_the_configuration_page_is_in_step():
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == reference.markdown(), "run: certbench schema --write docs/configuration.md"


def test_every_key_of_the_schema_is_listed():
    text = reference.markdown()

    def leaves(node):
        for name, child in node.get("properties", {}).items():
            yield name
            yield from leaves(child)

    definitions = config.schema()["$defs"].values()
    for name in {n for node in (config.schema(), *definitions) for n in leaves(node)}:
        assert f"{name}`" in text, name


def test_every_plug_in_is_listed_with_every_parameter():
    text = reference.markdown()
    for kind, (_, phases) in reference._KINDS.items():
        for name in plugins.available(kind):
            section = text.split(f"\n### `{name}`\n", 1)[1].split("\n### ", 1)[0]
            module = plugins.load(kind, name)
            kinds = [k for k in reference._KINDS if name in plugins.available(k)]
            if len(kinds) > 1:
                continue  # two kinds have a plug-in of this name; the section found is of one
            for attribute in phases.values():
                for field in dataclasses.fields(getattr(module, attribute)):
                    assert f"| `{field.name}` |" in section, (kind, name, field.name)


def test_defaults_ranges_units_and_choices_are_told():
    text = reference.markdown()
    assert (
        "| `sigma` | number, > 0, in pixel values in [0, 1] | **required** | noise level |" in text
    )
    assert "| `shards.samples` | integer, >= 1, in noise samples per image | `10000` |" in text
    assert "`auto` or `cpu` or `cuda`" in text


def test_tables_of_the_page_have_as_many_cells_as_their_heads():
    columns = 0
    for line in reference.markdown().splitlines():
        if not line.startswith("|"):
            columns = 0
            continue
        cells = line.replace("\\|", "").count("|") - 1
        columns = columns or cells
        assert cells == columns, line
