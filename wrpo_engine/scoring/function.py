"""A reward that is a Python function of the stage's image: `module:function`."""

from __future__ import annotations

import importlib
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from numbers import Real

from wrpo_engine.errors import ConfigError, DataError, TemporaryError, WrpoError
from wrpo_engine.scoring.rewards import MAIN_SECTION, OnProgress, Pair, Reward, check_finite, row_name
from wrpo_engine.text.conversations import prompt_text

log = logging.getLogger("wrpo_engine")

PAIRS_PER_CALL = 256


class FunctionScorer:
    """Calls the function with lists of at most PAIRS_PER_CALL prompts and responses, in order.

    `section` of the spec is the reward; errors name it.
    """

    objectives: tuple[str, ...] = ()

    def __init__(self, function: str, *, section: str = MAIN_SECTION) -> None:
        self.identity = function
        self._field = f"{section}.function"
        self._call = load_function(function, field=self._field)

    def rewards(
        self, pairs: Sequence[Pair], names: Sequence[str] | None = None, on_progress: OnProgress | None = None
    ) -> list[Reward]:
        """Return the function's number for each pair, in order."""
        rewards: list[Reward] = []
        for start in range(0, len(pairs), PAIRS_PER_CALL):
            chunk = pairs[start : start + PAIRS_PER_CALL]
            chunk_names = [row_name(names, start + index) for index in range(len(chunk))]
            scored = [Reward(score=score) for score in self._scores(chunk, chunk_names)]
            check_finite(f"function {self.identity}", scored, chunk_names, hint="Correct the function for this row.")
            rewards.extend(scored)
            if on_progress is not None:
                on_progress(len(chunk))
        return rewards

    def _scores(self, pairs: Sequence[Pair], names: Sequence[str]) -> list[float]:
        where = f"for {len(pairs)} pairs from {names[0]}"
        try:
            result = self._call([prompt_text(prompt) for prompt, _ in pairs], [response for _, response in pairs])
        except (WrpoError, MemoryError):
            raise
        except (ConnectionError, TimeoutError) as error:
            raise TemporaryError(
                f"reward function {self.identity} failed {where}: {type(error).__name__}: {error}",
                code="RewardFunctionFailed",
                field=self._field,
                hint="The stage is retried. If this persists, check what the function connects to.",
            ) from error
        except Exception as error:
            log.exception("reward function %s failed", self.identity)
            raise self._invalid(f"raised {type(error).__name__}: {error} {where}") from error
        return self._numbers(result, names, where)

    def _numbers(self, result: object, names: Sequence[str], where: str) -> list[float]:
        if inspect.iscoroutine(result):
            result.close()
            raise self._invalid(f"returned a coroutine {where}: it must be a plain function, not async")
        # Arrays and tensors.
        values = result.tolist() if hasattr(result, "tolist") else result
        if isinstance(values, str | bytes | dict) or not isinstance(values, Sequence):
            raise self._invalid(f"returned {type(result).__name__} {where}, not a list of numbers")
        if len(values) != len(names):
            raise self._invalid(f"returned {len(values)} numbers {where}")
        numbers = []
        for value, name in zip(values, names, strict=True):
            plain = value.item() if hasattr(value, "item") else value
            if isinstance(plain, bool) or not isinstance(plain, Real):
                raise self._invalid(f"gives {value!r} ({type(value).__name__}) for {name}, not a number")
            try:
                numbers.append(float(plain))
            except OverflowError:
                numbers.append(math.inf)
        return numbers

    def _invalid(self, what: str) -> DataError:
        return DataError(
            f"reward function {self.identity} {what}",
            code="RewardFunctionInvalid",
            field=self._field,
            hint="It must be (prompts: list[str], responses: list[str]) -> list[float], one number for each pair.",
        )


def load_function(reference: str, *, field: str) -> Callable[[list[str], list[str]], object]:
    """Import `module:function`; ConfigError names `field` and the half of it that is wrong."""
    module_name, _, name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        own = error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}."))
        rule = (
            f"there is no module {error.name}"
            if own
            else f"importing {module_name} needs {error.name}, which is absent"
        )
        raise _config_error(
            field, reference, rule, "Install it in the stage's image (spec.images) or set PYTHONPATH."
        ) from error
    except Exception as error:
        log.exception("importing %s failed", module_name)
        rule = f"importing {module_name} raised {type(error).__name__}: {error}"
        raise _config_error(field, reference, rule, "Correct the module; the log has the traceback.") from error
    function = getattr(module, name, None)
    if not callable(function):
        state = "is not callable" if hasattr(module, name) else "does not exist"
        rule = f"{name} {state} in {module_name} ({module.__file__})"
        raise _config_error(field, reference, rule, "Name a function of that module as module:function.")
    found: Callable[[list[str], list[str]], object] = function
    return found


def _config_error(field: str, reference: str, rule: str, hint: str) -> ConfigError:
    return ConfigError(field, reference, rule, hint, code="RewardFunctionInvalid")
