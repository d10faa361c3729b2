"""The table of known traps of R1 reproductions and the tests that hold them shut; each of those exists and runs."""

import ast
import re
from pathlib import Path

import pytest

from trl_r1.rewards import RewardRouter, accuracy_reward
from trl_r1.rows import Row
from trl_r1.verifiers import verify

ROOT = Path(__file__).parent

# Trap → tests. Those of 1 to 14 (rewards) name their trap in the function's name or docstring.
TRAPS: dict[int, list[str]] = {
    1: [
        "test_responses.py::test_strict_form_is_recognised",
        "test_responses.py::test_every_other_form_is_malformed",
        "rewards/test_format.py::test_strict_and_think_only",
    ],
    2: [
        "test_responses.py::test_prefill_is_part_of_the_form",
        "rewards/test_accuracy.py::test_prefill_is_told",
        "rewards/test_rewards.py::test_gold_scores_the_maximum_under_every_template",
        "test_prompts.py::test_chat_template_that_opens_the_thinking_is_detected",
    ],
    3: [
        "test_responses.py::test_only_what_follows_the_thinking_is_the_answer",
        "test_responses.py::test_two_different_final_answers_are_none",
        "verifiers/test_judge.py::test_the_thinking_is_never_shown",
    ],
    4: [
        "verifiers/test_math.py::test_unreadable_gold_is_none_never_zero",
        "verifiers/test_verifiers.py::test_check_references_names_rows_above_the_share",
        "verifiers/test_code.py::test_unreadable_references",
        "verifiers/test_gym.py::test_trap_4_unreadable_references_are_none",
        "rewards/test_accuracy.py::test_none_where_nothing_can_tell",
    ],
    5: [
        "verifiers/test_math.py::test_table_of_cases",
        "verifiers/test_numbers.py::test_plain_numbers_are_read_exactly",
        "verifiers/test_verifiers.py::test_gold_answers_of_real_data",
    ],
    6: ["test_traps.py::test_trap_6_gold_comes_first"],
    7: [
        "verifiers/test_bounds.py::test_deadline_interrupts_on_the_main_thread_and_off_it",
        "verifiers/test_math.py::test_pathological_answers_take_bounded_time_off_the_main_thread",
        "test_workers.py::test_a_bad_item_fails_alone",
    ],
    8: [
        "verifiers/test_math.py::test_pathological_answers_take_bounded_time_off_the_main_thread",
        "verifiers/test_bounds.py::test_digits_are_bounded_before_evaluation",
        "verifiers/test_gym.py::test_trap_8_huge_answers_take_bounded_time",
        "test_responses.py::test_long_completions_take_bounded_time",
        "test_language.py::test_trap_8_a_hundred_thousand_characters_take_bounded_time",
        "rewards/test_pool.py::test_a_stuck_answer_is_wrong_and_delays_nothing_else",
    ],
    9: [
        "rewards/test_shaping.py::test_trap_9_cosine_is_trls_in_tokens_and_clamped",
        "rewards/test_shaping.py::test_soft_overlong_is_trls_and_clamped",
        "test_traps.py::test_trap_9_a_score_does_not_depend_on_the_rest_of_the_batch",
    ],
    10: [
        "verifiers/test_code.py::test_wrong_programs_fail_and_the_detail_says_how",
        "verifiers/test_code.py::test_attacks_on_functions_score_zero",
        "verifiers/test_code.py::test_expected_values_cannot_be_read",
        "test_sandbox.py::test_an_endless_loop_is_stopped",
        "test_sandbox.py::test_children_are_killed_even_in_a_session_of_their_own",
        "test_sandbox.py::test_a_fork_bomb_stays_small_and_dies",
        "test_sandbox.py::test_ten_gigabytes_of_memory_are_refused",
        "test_sandbox.py::test_a_gigabyte_of_output_is_cut",
        "test_sandbox.py::test_nothing_outside_can_be_written",
        "test_sandbox.py::test_no_network",
        "test_sandbox.py::test_the_parent_cannot_be_killed",
        "rewards/test_pool_programs.py::test_an_endless_program_delays_less_than_a_second",
    ],
    11: [
        "verifiers/test_expression.py::test_answers",
        "verifiers/test_expression.py::test_arithmetic_is_exact",
        "verifiers/test_expression.py::test_any_allows_to_leave_numbers_out_but_not_to_repeat_them",
    ],
    12: [
        "test_language.py::test_trap_12_maths_and_code_are_stripped_first",
        "test_language.py::test_trap_12_thinking_cannot_hide_in_formulas_or_code",
        "rewards/test_language_consistency.py::test_only_the_thinking_is_scored",
        "rewards/test_language_consistency.py::test_trap_12_no_thinking_earns_nothing",
    ],
    13: [
        "rewards/test_router.py::test_trap_13_one_none_makes_the_row_none",
        "rewards/test_accuracy.py::test_strings_and_messages_score_alike",
        "rewards/test_accuracy.py::test_picklable",
        "rewards/test_language_consistency.py::test_trap_13_found_by_plain_trl",
        "trainers/test_grpo.py::test_one_missing_reward_leaves_the_completion_out",
        "verifiers/test_gym.py::test_trap_13_a_little_is_nothing",
        "verifiers/test_gym.py::test_trap_13_model_text_is_not_evaluated",
        "rewards/test_pool_programs.py::test_gym_rows_in_workers",
    ],
    14: ["test_traps.py::test_trap_14_proxy_and_verified_accuracy_are_logged_apart"],
    15: ["generation/test_transformers_sampler.py::test_a_prompt_has_one_bos"],
    16: [
        "trainers/test_sft_targets.py::test_prompt_is_the_samplers_and_target_is_text_and_eos",
        "trainers/test_sft_targets.py::test_thinking_stays_whatever_the_chat_template_does",
    ],
    17: ["generation/test_engine.py::test_truncation_is_told_by_the_engine_and_every_eos_id_stops"],
    18: ["trainers/test_sft_targets.py::test_padding_that_is_eos_keeps_the_eos_label"],
    19: ["generation/test_engine.py::test_truncation_is_told_by_the_engine_and_every_eos_id_stops"],
    20: ["trainers/test_sft_targets.py::test_targets_that_lose_their_eos"],
    21: [
        "trainers/test_sft_targets.py::test_new_tokens_are_trained_under_lora",
        "trainers/test_sft_targets.py::test_special_thinking_tags_are_refused",
    ],
    22: ["trainers/test_grpo.py::test_alarms_are_raised_once"],
    23: [
        "trainers/test_grpo.py::test_groups_without_spread_are_counted",
        "trainers/test_grpo.py::test_dynamic_sampling_replaces_groups_and_stops_at_its_cap",
    ],
    24: ["trainers/test_grpo.py::test_lengths_of_right_and_wrong_answers_are_logged_apart"],
    25: [
        "trainers/test_grpo.py::test_alarms_are_raised_once",
        "trainers/test_resume.py::test_reference_adapter_is_reset_and_not_saved_with_the_model",
    ],
    26: [
        "trainers/test_packed.py::test_ratio_to_the_engine_without_a_pass_of_its_own",
        "trainers/test_grpo_config.py::test_truncated_sampling_is_refused_while_the_ratio_is_corrected",
    ],
    27: [
        "generation/test_weights.py::test_full_weights_arrive_after_each_of_three_large_updates",
        "generation/test_weights.py::test_engine_disagrees_without_the_hand_over",
        "generation/test_weights.py::test_lora_arrives_merged_and_leaves_the_frozen_base_bit_identical",
        "generation/test_weights.py::test_4bit_arrives_dequantised_and_merged",
    ],
    28: ["trainers/test_grpo_config.py::test_groups_must_be_whole_on_every_rank"],
    29: [
        "trainers/test_resume.py::test_resumed_run_equals_uninterrupted",
        "trainers/test_resume.py::test_without_its_reference_a_resumed_run_differs",
    ],
    30: ["rewards/test_pool.py::test_batch_deadline_gives_none"],
    31: [
        "trainers/test_grpo.py::test_fewer_questions_than_a_rollout_needs",
        "trainers/test_grpo.py::test_learning_rate_for_full_fine_tuning_warns_under_lora",
    ],
    32: [
        "data/test_decontamination.py::test_short_questions_are_compared_as_a_whole_or_by_line",
        "data/test_decontamination.py::test_typesetting_does_not_count",
        "data/test_decontamination.py::test_every_real_question_is_found_in_another_typesetting",
    ],
    33: [
        "data/test_rejection.py::test_the_length_distribution_is_that_of_sampling_everything",
        "data/test_rejection.py::test_the_cap_lowers_the_bias_toward_easy_prompts",
    ],
    34: ["pipeline/test_sft_stage.py::test_second_sft_starts_from_the_base"],
    36: [
        "evaluation/test_metrics.py::test_summary_has_the_keys_of_the_report_and_intervals_around_them",
        "evaluation/test_metrics.py::test_unreadable_gold_counts_nowhere",
    ],
    37: [
        "pipeline/test_files.py::test_old_content_stays_when_writing_fails",
        "trainers/test_resume.py::test_a_half_written_checkpoint_is_passed_over",
        "generation/test_shards.py::test_kill_9_loses_at_most_one_shard",
        "generation/test_transformers_sampler.py::test_the_command_survives_a_kill_and_gives_what_it_would_have_given",
        "recipes/test_cold_start_recipe.py::test_a_killed_run_goes_on_where_it_was",
        "pipeline/test_rewrite_kill.py::test_a_killed_rewriting_goes_on_where_it_was",
        "pipeline/test_review.py::test_a_kill_loses_no_decision_that_was_saved",
        "recipes/test_rejection_sampling_recipe.py::test_a_killed_run_goes_on_and_comes_to_the_same",
        "data/test_general_kill.py::test_a_killed_build_goes_on_and_comes_to_the_same",
        "data/test_mixture.py::test_killed_mixture_goes_on_and_equals_an_uninterrupted_one",
        "recipes/test_sft_recipe.py::test_killed_run_resumes_where_it_was",
        "pipeline/test_distill_kill.py::test_the_same_command_goes_on_after_each_kill",
        "evaluation/test_stage.py::test_killed_run_goes_on_where_it_stopped_and_failures_do_not_stop_the_others",
    ],
}


def functions(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def names_trap(node, number):
    words = f"{node.name.replace('_', ' ')} {ast.get_docstring(node) or ''}".lower().replace(",", " ").replace(".", " ")
    return f"trap {number} " in f"{words} ".replace("\n", " ")


@pytest.mark.parametrize("number", sorted(TRAPS))
def test_every_trap_has_its_tests(number):
    for entry in TRAPS[number]:
        path, name = entry.split("::")
        found = functions(path)
        assert name in found, f"trap {number}: {entry} is gone; name the test that took its place"
        if number <= 14:
            assert names_trap(found[name], number), f"{entry} does not say `Trap {number}.` in its name or docstring"


def test_all_traps_of_rewards_are_in_the_table():
    assert set(range(1, 15)) <= set(TRAPS)


def test_the_page_of_traps_has_all_that_the_code_names():
    listed = {
        int(line.split("|")[1])
        for line in (ROOT.parent / "docs/traps.md").read_text().splitlines()
        if line[2:4].strip().isdigit()
    }
    sources = [path.read_text() for path in (ROOT.parent / "trl_r1").rglob("*.py")]
    named = {int(number) for text in sources for number in re.findall(r"\b[Tt]rap (\d+)", text)}
    assert len(named) > 10
    assert named | set(TRAPS) <= listed


def test_trap_6_gold_comes_first():
    """Math-Verify's comparison is not symmetric: an interval answers an inequality, not the other way round."""
    assert verify("(-\\infty,2)", Row("", "x<2")).correct is True
    assert verify("x<2", Row("", "(-\\infty,2)")).correct is False


def length_reward(completions, **kwargs):
    """What a policy can raise without solving anything."""
    return [min(len(text) / 200, 1.0) for text in completions]


def test_trap_9_a_score_does_not_depend_on_the_rest_of_the_batch():
    """What is relative to a group is the advantage, made by the trainer from the prompt's own group."""
    right, wrong = "<think> 1 + 2 </think> <answer> 3 </answer>", "<think> 1 + 2 </think> <answer> 4 </answer>"
    router = RewardRouter({"default": {"accuracy": 1.0, "format": 0.5, "tag_count": 0.25}})
    alone = [router([text], reference=["3"], domain=["math"])[0] for text in (right, wrong, "x " * 500)]
    together = router([right, wrong, "x " * 500], reference=["3"] * 3, domain=["math"] * 3)
    assert alone == together
    assert len(set(together)) == 3


def test_trap_14_proxy_and_verified_accuracy_are_logged_apart():
    """The total rises while the answers get worse, and the log shows it."""
    router = RewardRouter({"math": {length_reward: 1.0, accuracy_reward: 0.2}})

    def means(texts):
        logged = {}
        total = router(texts, reference=["3"] * len(texts), domain=["math"] * len(texts), log_metric=logged.__setitem__)
        proxy = next(value for name, value in logged.items() if "length_reward" in name)
        verified = next(value for name, value in logged.items() if "accuracy" in name)
        return sum(total) / len(total), proxy, verified

    honest = means(["<think> 1 + 2 </think> <answer> 3 </answer>"] * 4)
    hacked = means([f"<think> {'hm ' * 80} </think> <answer> 5 </answer>"] * 4)
    assert hacked[0] > honest[0]
    assert hacked[1] > honest[1]
    assert hacked[2] < honest[2]
