"""What general rows ask: questions about the model itself, and which prompts are too simple for a thinking."""

from __future__ import annotations

import re

# Words of a prompt that is too simple for a thinking, such as "hello": a greeting, thanks or a goodbye and little else.
_SIMPLE = re.compile(
    r"(?:hello|hi|hey|hiya|howdy|greetings|good (?:morning|afternoon|evening|day|night)|thanks|thank you|bye|goodbye|"
    r"see you|你好|您好|嗨|哈喽|早上好|上午好|下午好|晚上好|早安|晚安|谢谢|再见|hallo|guten (?:tag|morgen|abend)|bonjour|"
    r"salut|merci|hola|gracias|ciao|olá|こんにちは|안녕하세요)(?![\w-])",
    re.IGNORECASE,
)
_SIMPLE_HAN = re.compile(r"(?:你好|您好|嗨|哈喽|早上好|上午好|下午好|晚上好|早安|晚安|谢谢|再见)")
_MOST_SIMPLE_WORDS, _MOST_SIMPLE_HAN = 8, 16

# What self-cognition rows ask, by language.
SELF_QUESTIONS: dict[str, tuple[str, ...]] = {
    "en": (
        "Who are you?", "What is your name?", "Who made you?", "Are you a human?", "What can you do?",
        "Which company developed you?", "Are you ChatGPT?", "Introduce yourself, please.", "What kind of model are you?",
        "Do you have feelings?", "How were you trained?", "Can you remember our earlier conversations?",
    ),
    "zh": (
        "你是谁?", "你叫什么名字?", "谁开发了你?", "你是人类吗?", "你会做什么?", "你是哪家公司的模型?", "你是ChatGPT吗?",
        "请介绍一下你自己。", "你是什么模型?", "你有感情吗?", "你是怎么训练出来的?", "你记得我们以前的对话吗?",
    ),
}  # fmt: skip


def is_simple(prompt: str) -> bool:
    """Whether a prompt is a greeting, thanks or a goodbye and little else: it gets no thinking.

    Example:

    ```python
    >>> from trl_r1.data.general_prompts import is_simple
    >>> is_simple("Hello, how are you?"), is_simple("Hello! Write a poem about the sea and the two of us, please.")
    (True, False)
    ```
    """
    text = prompt.strip()
    if not (_SIMPLE.match(text) or _SIMPLE_HAN.match(text)):
        return False
    return len(text.split()) <= _MOST_SIMPLE_WORDS and len(re.findall(r"[\u3400-\u9fff]", text)) <= _MOST_SIMPLE_HAN
