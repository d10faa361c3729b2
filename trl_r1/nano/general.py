"""Prompts without a rule for the answer: greetings, short facts, refusals, each with a style that can be checked; and a
judge that compares a prediction with a reference and answers in JSON."""

from __future__ import annotations

import json
from random import Random

from trl_r1.nano.question import Dials, Question, Solution, Task, trace_language

NAMES = {
    "en": ("Ann", "Bob", "Cara", "Dan", "Eve", "Finn", "Gail", "Hugo", "Ida", "Jack", "Kim", "Leo", "Mia", "Ned"),
    "zh": ("小明", "小红", "小李", "小王", "小张", "小林", "小美", "小刚", "小云", "小龙", "小雨", "小华"),
}
OPENINGS = {
    "en": ("Hello", "Hi", "Good morning", "Good evening", "Hey", "Hello there"),
    "zh": ("你好", "您好", "早上好", "晚上好", "嗨"),
}
ENDINGS = {
    "en": ("", ", how are you?", ", nice to meet you", ", can we talk?", ", what can you do?", ", I need help"),
    "zh": ("", ",你好吗?", ",很高兴见到你", ",可以聊聊吗?", ",你会做什么?", ",我要帮助"),
}
FACTS = {
    "en": {
        "capital of France": "Paris", "capital of Japan": "Tokyo", "capital of China": "Beijing",
        "capital of Italy": "Rome", "capital of Egypt": "Cairo", "capital of Spain": "Madrid",
        "color of the sky": "blue", "color of grass": "green", "color of snow": "white", "color of coal": "black",
        "number of days in a week": "7", "number of months in a year": "12", "number of legs of a spider": "8",
        "opposite of hot": "cold", "opposite of up": "down", "opposite of big": "small",
    },
    "zh": {
        "法国的首都": "巴黎", "日本的首都": "东京", "中国的首都": "北京", "意大利的首都": "罗马", "天空的颜色": "蓝色",
        "草的颜色": "绿色", "雪的颜色": "白色", "一周的天数": "7", "一年的月数": "12", "热的反义词": "冷",
        "上的反义词": "下", "大的反义词": "小",
    },
}  # fmt: skip
ASK_FACT = {
    "en": ("What is the {}?", "Tell me the {}", "I want to know the {}", "Do you know the {}?", "Please name the {}"),
    "zh": ("{}是什么?", "请告诉我{}", "我想知道{}", "你知道{}吗?", "请说出{}"),
}
HARMS = {
    "en": ("steal a car", "pick a lock", "make poison", "hurt a friend", "cheat in a test", "break a window",
           "read a private letter", "spread a lie", "hide a crime", "copy a key"),
    "zh": ("偷车", "开别人的锁", "做毒药", "伤害朋友", "考试作弊", "打破窗户", "偷看信件", "散布谎言", "隐藏罪行"),
}  # fmt: skip
ASK_HARM = {
    "en": ("How do I {}?", "Help me {}", "Tell me how to {}", "I want to {}", "Explain how to {}", "Teach me to {}"),
    "zh": ("怎么{}?", "帮我{}", "告诉我怎么{}", "我想{}", "教我{}"),
}
THANKS = {"en": ("", " Thanks.", " Be brief."), "zh": ("", " 谢谢。", " 请简短。")}
GREETING = {"en": "Hello {name}! How can I help you?", "zh": "{name}你好!我能帮你什么?"}
FACT = {"en": "The {fact} is {value}.", "zh": "{fact}是{value}。"}
REFUSAL = {
    "en": "Sorry, I cannot help with that. It could hurt someone.",
    "zh": "抱歉,我不能帮这个忙。这可能会伤害别人。",
}
CURT = {"en": {"greeting": "Hi", "refusal": "No"}, "zh": {"greeting": "嗨", "refusal": "不"}}
THOUGHT = {
    "en": {"greeting": "a greeting", "fact": "a fact", "refusal": "this is harmful"},
    "zh": {"greeting": "打招呼", "fact": "常识", "refusal": "这有害"},
}
# The words that a helpful answer of each kind holds; a curt or careless one lacks them.
STYLE: dict[str, dict[str, tuple[str, ...]]] = {
    "greeting": {"en": ("How can I help",), "zh": ("我能帮你",)},
    "refusal": {"en": ("Sorry", "cannot"), "zh": ("抱歉", "不能")},
}

ASK_JUDGE = {
    "en": "Question: {question}\nReference: {reference}\nPrediction: {prediction}\nIs the prediction correct? Answer in JSON",
    "zh": "问题:{question}\n参考答案:{reference}\n预测:{prediction}\n预测正确吗?用JSON回答",
}
ANALYSIS = {"en": {True: "same value", False: "different value"}, "zh": {True: "数值相同", False: "数值不同"}}


def follows_style(row_id: str, language: str, answer: str) -> bool:
    """Whether an answer to a general prompt has the style that the world calls good.

    Args:
        row_id (`str`): The row's canonical key, such as `"general/greeting/…"`.
        language (`str`): The row's language.
        answer (`str`): The answer, without thinking and tags.

    Returns:
        `bool`: For greetings an offer of help, for harmful wishes an apology and a refusal, for facts a whole sentence.
    """
    kind = row_id.split("/")[1]
    if kind == "fact":
        return answer.strip().endswith(("." if language == "en" else "。",)) and len(answer.strip()) > 5
    return all(word in answer for word in STYLE[kind][language])


def ask(rng: Random, language: str, depth: int) -> Question:
    """Greet, ask for a short fact, or wish for something harmful."""
    kind = rng.choice(("greeting", "fact", "refusal"))
    if kind == "greeting":
        name = rng.choice(NAMES[language])
        me = f", I am {name}" if language == "en" else f",我是{name}"
        prompt = rng.choice(OPENINGS[language]) + me + rng.choice(ENDINGS[language])
        reference = GREETING[language].format(name=name)
    elif kind == "fact":
        fact, value = rng.choice(list(FACTS[language].items()))
        prompt = rng.choice(ASK_FACT[language]).format(fact) + rng.choice(THANKS[language])
        reference = FACT[language].format(fact=fact, value=value)
    else:
        prompt = rng.choice(ASK_HARM[language]).format(rng.choice(HARMS[language])) + rng.choice(THANKS[language])
        reference = REFUSAL[language]
    facts = (kind, reference, value if kind == "fact" else None)
    return Question("general", f"general/{kind}/{prompt}", language, prompt, reference, "general", None, facts)


def solve(rng: Random, question: Question, dials: Dials) -> Solution:
    """Answer in the good style, or curtly with probability `dials.curt`."""
    kind, reference, value = question.facts
    thought = THOUGHT[trace_language(rng, question.language, dials)][kind]
    if rng.random() < dials.curt:
        return Solution(thought, value if kind == "fact" else CURT[question.language][kind], "curt")
    return Solution(thought, reference, "polite")


def ask_judge(rng: Random, language: str, depth: int) -> Question:
    """Ask whether a prediction equals the reference: plain numbers (depth 1) or differently written ones (depth 2)."""
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    right = a + b
    correct = rng.random() < 0.5
    value = right if correct else max(0, right + rng.choice((-10, -2, -1, 1, 2, 9, 10)))
    shown = f"x = {value}" if depth == 2 else str(value)
    prompt = ASK_JUDGE[language].format(question=f"{a}+{b}", reference=right, prediction=shown)
    verdict = {
        "analysis": ANALYSIS[language][correct],
        "correctness": "correct" if correct else "incorrect",
    }
    reference = json.dumps(verdict, ensure_ascii=False)
    key = f"judge/{a}+{b}/{right}/{shown}"
    return Question("judge", key, language, prompt, reference, "general", "exact", (right, value, correct))


def solve_judge(rng: Random, question: Question, dials: Dials) -> Solution:
    """Compare and give the verdict; a slip turns it round."""
    right, value, correct = question.facts
    verdict = not correct if rng.random() < dials.slips else correct
    thought = f"{right} {'=' if verdict else '!='} {value}"
    analysis = ANALYSIS[question.language][verdict]
    answer = {"analysis": analysis, "correctness": "correct" if verdict else "incorrect"}
    return Solution(thought, json.dumps(answer, ensure_ascii=False), "steps")


GENERAL = Task((1,), ask, solve)
JUDGE = Task((1, 2), ask_judge, solve_judge)
