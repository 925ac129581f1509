"""Settings of randomization: what is refused, in which words, and what a run folder of before has."""

from collections.abc import Callable

import pytest

from ppo_lab.config import ConfigError, ExperimentConfig
from ppo_lab.envs import randomization
from ppo_lab.envs.randomization.term import OPERATIONS, WHEN
from tests.paths import REPOSITORY

Experiment = Callable[..., ExperimentConfig]


def test_without_randomization_an_env_has_no_term(experiment: Experiment) -> None:
    assert experiment().env.randomization == {}


@pytest.mark.parametrize("choice", ["light", "full"])
def test_a_shipped_choice_is_allowed_by_its_terms(choice: str, experiment: Experiment) -> None:
    terms = experiment(f"randomization={choice}").env.randomization
    assert list(randomization.problems(experiment(f"randomization={choice}").env)) == []
    for name, term in terms.items():
        of_class = randomization.term_class(name)
        assert term.when in of_class.when
        assert term.operation in of_class.operations
        assert set(of_class.when) <= set(WHEN)
        assert set(of_class.operations) <= set(OPERATIONS)


def test_the_document_lists_every_term_with_its_unit_times_and_operations() -> None:
    table = (REPOSITORY / "docs/randomization.md").read_text().split("\n\n")
    rows = {row.split("`")[1]: row for part in table if part.startswith("| term") for row in part.splitlines()[2:]}
    assert sorted(rows) == randomization.names()
    for name, row in rows.items():
        of_class = randomization.term_class(name)
        *_, unit, when, operations, _ = (cell.strip() for cell in row.split("|"))
        assert unit == of_class.unit, name
        assert (when, operations) == (", ".join(of_class.when), ", ".join(of_class.operations)), name


FRICTION = "env.randomization.friction"
COMMANDS = "+env.randomization.commands={when:interval,operation:set,"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            f"randomization=light {FRICTION}.range=[1,0]",
            r"friction.range=\[1.0,0.0\] has low above high. Try \[0.0,1.0\]",
        ),
        (f"randomization=light {FRICTION}.range=[0,1]", "out of range. Allowed: from 0.01 on"),
        (f"randomization=light {FRICTION}.range=1", "of the wrong kind. Allowed: a list of numbers"),
        (f"randomization=light {FRICTION}.rang=[0,1]", f"unknown key .* Did you mean {FRICTION}.range"),
        (f"randomization=light {FRICTION}.when=sometimes", "Allowed: one of build, reset, interval, step"),
        (f"randomization=light {FRICTION}.when=interval", "when=interval is not possible. Allowed: build, reset"),
        (f"randomization=light {FRICTION}.operation=add", "operation=add is not possible. Allowed: set"),
        ("randomization=light randomization.friction.range=[1,0]", f"Did you mean {FRICTION}.range"),
        ("+env.randomization.frictoin.range=[0,1]", "frictoin is no term. Did you mean friction"),
        ("+env.randomization.push=3", "push=3 is of the wrong kind"),
        ("env.randomization=3", "env.randomization=3 is of the wrong kind"),
        ("+env.randomization.push.range=[0,1]", "push.interval_s has no value"),
        ("randomization=ful", "there is no such randomization. Did you mean full"),
        ("randomization=full env.randomization.push.interval_s=[3,1]", "interval_s=.* has low above high"),
        ("randomization=full env.randomization.gains.range=[0,1]", "factors of 0 or less"),
        ("randomization=full env.randomization.action_delay.range=[0,2000]", "longer than an episode, which has 1000"),
        ("randomization=full env.randomization.action_delay.range=[0,0.5]", "must be whole steps"),
        (
            "randomization=light +env.randomization.observation_noise.amplitudes.base_lin_vel=1",
            "base_lin_vel is no term of the observation. Did you mean base_ang_vel",
        ),
        ("randomization=full +env.randomization.push.share=1.5", "share=1.5 is out of range"),
        ("randomization=full env.randomization.push.share=0.5", r"Add it: \+env.randomization.push.share=..."),
        ("randomization=full +env.randomization.joint_friction.share=0.5", "share=0.5 needs operation=add or scale"),
        (
            f"{COMMANDS}low:{{lin_vel_x:0}},high:{{lin_vel_x:1}}}}",
            "lin_vel_x is no command. Did you mean lin_vel_x_m_s",
        ),
        (f"{COMMANDS}low:{{lin_vel_x_m_s:1}},high:{{lin_vel_x_m_s:0}}}}", "low.lin_vel_x_m_s=1.0 is above high"),
        (f"{COMMANDS}low:{{lin_vel_x_m_s:1}},high:{{}}}}", "high names none, and low lin_vel_x_m_s"),
        (f"{COMMANDS}low:{{}},high:{{}}}}", "names no command. Allowed: lin_vel_x_m_s"),
        (
            f"env=go2_backflip {COMMANDS}low:{{a:1}},high:{{a:1}}}}",
            "Allowed: none, the env go2_backflip has no commands",
        ),
        ("env=hover randomization=light", "the env hover cannot be randomized. Leave it out: randomization=none"),
    ],
)
def test_what_cannot_be_is_refused_in_words(words: str, says: str, experiment: Experiment) -> None:
    with pytest.raises(ConfigError, match=says):
        experiment(*words.split(" "))
