"""Published prompts for one-word summaries; only token prepending fills ``{placeholder}``."""

from __future__ import annotations

_DETAILS = (
    "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms provide "
    "additional but less central details. With this in mind , "
)
_TASK = "In this task, you're "
_SENTENCE = 'this sentence : {placeholder}"{text}" '

PROMPTS: dict[str, tuple[str, ...]] = {
    # Jiang et al. 2023, section 3.1
    "prompteol": ('This sentence : {placeholder}"{text}" means in one word:"',),
    # Zhang et al. 2024, section 3: pretended chain of thought, knowledge enhancement
    "cot": ("After thinking step by step , " + _SENTENCE + 'means in one word:"',),
    "knowledge": (_DETAILS + _SENTENCE + 'means in one word:"',),
    # Lei et al. 2024, section 3: the mean over eight tasks
    "metaeol": (
        _TASK + "presented with a text excerpt. Your task is to categorize the excerpt into a broad category such as "
        "'Education', 'Technology', 'Health', 'Business', 'Environment', 'Politics', or 'Culture'. These categories "
        "help in organizing content for better accessibility and targeting. For this task, "
        + _SENTENCE
        + 'should be classified under one general category in one word:"',
        _TASK + "given a statement and you need to determine whether it's presenting an 'Opinion' or a 'Fact'. This "
        "distinction is vital for information verification, educational purposes, and content analysis. For this "
        "task, " + _SENTENCE + 'discriminates between opinion and fact in one word:"',
        _TASK + "given a review from an online platform. Your task is to generate a rating for the product based on "
        "the review on a scale of 1-5, where 1 means 'extremely negative' and 5 means 'extremely positive'. For this "
        "task, " + _SENTENCE + 'reflects the sentiment in one word:"',
        _TASK + "reading a personal diary entry. Your task is to identify the predominant emotion expressed, such as "
        "joy, sadness, anger, fear, or love. For this task, " + _SENTENCE + 'conveys the emotion in one word:"',
        _TASK + "presented with two sentences. Your task is to assess whether the sentences convey the same meaning. "
        "Use 'identical', 'similar', 'different', or 'unrelated' to describe the relationship. To enhance the "
        "performance of this task, " + _SENTENCE + 'means in one word:"',
        _TASK + "given a sentence and a phrase. Your task is to determine if the phrase can be a contextual synonym "
        "within the given sentence. Options include 'yes', 'no', or 'partially'. To enhance the performance of this "
        "task, " + _SENTENCE + 'means in one word:"',
        _TASK + "examining a news article. Your task is to extract the most critical fact from the article. For this "
        "task, " + _SENTENCE + 'encapsulates the key fact in one word:"',
        _TASK + "reviewing a scientific abstract. Your task is to identify the main entities (e.g., proteins, "
        "diseases) and their relations (e.g., causes, treats). For this task, "
        + _SENTENCE
        + 'highlights the primary entity or relation in one word:"',
    ),
}
