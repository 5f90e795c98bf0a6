"""A short campaign of kills on one suite; `make chaos` is the long one."""

import pytest
from chaos import Campaign, Trouble, compare, content


@pytest.fixture(scope="module")
def survived(tmp_path_factory):
    top = tmp_path_factory.mktemp("chaos")
    return top, Campaign(top, ["28_position", "29_precision"], ["steps=200"], count=6, seed=5).run()


def test_killed_again_and_again_a_suite_ends_with_equal_records(survived):
    _, lines = survived
    print("\n".join(lines))
    assert lines[-1] == "none missing, none torn, none different, nothing left over, no process left"
    assert "6 kills" in lines[1] and "figures" in lines[-2] and "npz" in lines[-2]


def removed(path):
    path.unlink()


def changed(path):
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def torn(path):
    path.with_name(".torn.part").touch()


def one_more(path):
    path.with_name("more.npz").touch()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(removed, "1 missing"), (changed, "1 different"), (torn, "1 left over: .torn.part"), (one_more, "1 too many: more.npz")],
)
def test_the_comparison_finds_what_is_lost(survived, spoil, words):
    top, _ = survived
    path = next((top / "wild/runs/smoke").glob("*.npz"))
    before = path.read_bytes()
    spoil(path)
    with pytest.raises(Trouble, match=words):
        compare(top / "calm", top / "wild")
    path.write_bytes(before)
    for extra in (".torn.part", "more.npz"):
        path.with_name(extra).unlink(missing_ok=True)
    assert content(top / "calm") == content(top / "wild")
