"""Titles of synthetic items tell their topic."""


def test_titles_name_the_main_text_topic(folder, world, column):
    titles = column(folder / "item_feature.parquet", "item_title")
    topics = world.text_topics[1:].argmax(axis=1)
    second_words = [{title.split()[1] for title in titles[topics == topic]} for topic in range(world.spec.topics // 2)]
    for number, words in enumerate(second_words):
        assert len(words) > 1
        assert all(words.isdisjoint(others) for others in second_words[number + 1 :])
