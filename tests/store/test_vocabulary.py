from arwkv_store.format.vocabulary import vocabulary_hash


def test_order_of_the_mapping_does_not_matter_and_a_moved_id_does() -> None:
    assert vocabulary_hash({"a": 0, "é": 1}) == vocabulary_hash({"é": 1, "a": 0})
    assert vocabulary_hash({"a": 0, "é": 1}) != vocabulary_hash({"a": 1, "é": 0})


def test_the_stored_hash_of_a_known_vocabulary_never_changes() -> None:
    # Datasets carry it: a new value here would make every one of them refuse its own tokenizer.
    known = "sha256:ff12914aebde75b21da8ee9035bdaf99f6ba0617e67a14dbdf2eb3b0d0db1d9d"
    assert vocabulary_hash({"a": 0, "é": 1}) == known
