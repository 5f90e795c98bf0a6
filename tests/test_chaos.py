"""A suite is killed once; `make faults` kills more of its processes and `make chaos` a hundred."""

import pytest
from chaos import Campaign, Trouble, compare, content


@pytest.fixture(scope="module")
def survived(tmp_path_factory, campaign):
    top, notebooks = tmp_path_factory.mktemp("chaos"), ["29_precision", "40_reconstructions"] if campaign else ["29_precision"]
    return top, Campaign(top, notebooks, ["steps=200"], count=6 if campaign else 1, seed=5).run()


def test_killed_again_and_again_a_suite_ends_with_equal_records(survived, campaign):
    _, lines = survived
    print("\n".join(lines))
    assert lines[-1] == "none missing, none torn, none different, nothing left over, no process left"
    assert f"{6 if campaign else 1} kills" in lines[1] and "npz" in lines[-2] and ("figures" in lines[-2]) == campaign


SPOILS = {
    "1 missing": lambda path: path.unlink(),
    "1 different": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"),
    "1 left over: .torn.part": lambda path: path.with_name(".torn.part").touch(),
    "1 too many: more.npz": lambda path: path.with_name("more.npz").touch(),
}


@pytest.mark.parametrize("words", SPOILS)
def test_the_comparison_finds_what_is_lost(survived, words):
    top, _ = survived
    path = next((top / "wild/runs/smoke").glob("*.npz"))
    before = path.read_bytes()
    SPOILS[words](path)
    with pytest.raises(Trouble, match=words):
        compare(top / "calm", top / "wild")
    path.write_bytes(before)
    for extra in (".torn.part", "more.npz"):
        path.with_name(extra).unlink(missing_ok=True)
    assert content(top / "calm") == content(top / "wild")
