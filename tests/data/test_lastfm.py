"""Tags come from people who do not listen to the artist."""

from __future__ import annotations

from ltrr.data.beir import write_dataset
from ltrr.data.corpus import Document
from ltrr.data.lastfm import interactions, tagged_corpus


def test_only_tags_of_others_count(tmp_path) -> None:
    folder = tmp_path / "lastfm"
    documents = [Document("1", "A", "", {"plays": 3}), Document("2", "B", "", {})]
    write_dataset(folder, documents, [{"_id": "q", "text": "loud"}], {"test": {"q": {"1": 1}}})
    (folder / "interactions.tsv").write_text("user\tartist\tplays\nu1\t1\t5\n")
    (folder / "tags.tsv").write_text('tag_id\ttag\n7\tloud\n8\t12" vinyl\n9\tslow\n')
    given = [("u1", "1", "9"), ("u2", "1", "7"), ("u2", "1", "8"), ("u3", "1", "8")]
    lines = ["user\tartist\ttag\tday", *("\t".join((*line, "1")) for line in given)]
    (folder / "user_taggedartists.tsv").write_text("\n".join(lines) + "\n")
    assert interactions(folder) == [("u1", "1", "5")]
    corpus = tagged_corpus(folder)
    assert corpus[0].metadata == {"tags": ['12" vinyl', "loud"]}  # the more frequent first; u1 listens
    assert corpus[1].metadata.get("tags") in (None, [])
    assert len(tagged_corpus(folder, num_tags=1)[0].metadata["tags"]) == 1
