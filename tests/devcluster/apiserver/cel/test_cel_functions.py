"""Kubernetes' CEL: functions of its libraries, optionals, errors, and the meaning of null."""

from __future__ import annotations

from typing import Any

import pytest

from wrpo_devcluster.apiserver.schema.schema import structural
from wrpo_devcluster.apiserver.validation.cel_rules import check_rules
from wrpo_devcluster.apiserver.values.formats import effective, fits

PROPERTIES = {
    "a": {"type": "number"},
    "b": {"type": "integer"},
    "s": {"type": "string"},
    "t": {"type": "string", "format": "date-time"},
    "d": {"type": "string", "format": "duration"},
    "l": {"type": "array", "items": {"type": "string"}},
    "n": {"type": "array", "items": {"type": "integer"}},
    "m": {"type": "object", "additionalProperties": {"type": "string"}},
    "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
    "q": {"x-kubernetes-int-or-string": True},
    "function": {"type": "string", "nullable": True},
    "o": {"type": "object", "properties": {"x": {"type": "integer"}}},
}
VALUE = {
    "a": 1, "b": 2, "s": "Ab,c", "t": "2024-01-02T03:04:05Z", "d": "1h30m", "l": ["x", "y"], "n": [3, 1, 2],
    "m": {"k": "v"}, "set": ["p", "q"], "q": "50%", "function": None, "o": {"x": 1},
}  # fmt: skip
TRUE = """
self.a < 1.5
self.b < 2.5
self.b / 2 == 1 && self.b % 2 == 0
-7 / 2 == -3 && -7 % 2 == -1
self.s.lowerAscii() == 'ab,c' && self.s.split(',').size() == 2 && self.s.split(',')[1] == 'c'
self.s.substring(1, 2) == 'b' && self.s.indexOf('c') == 3 && self.s.charAt(0) == 'A'
self.s.replace('A', 'x') == 'xb,c' && ' x '.trim() == 'x' && ['a', 'b'].join('-') == 'a-b'
self.s.find('[a-z]+') == 'b' && self.s.findAll('[a-z]').size() == 2
self.t < timestamp('2025-01-01T00:00:00Z') && self.t.getFullYear() == 2024 && self.t.getMonth() == 0
self.d == duration('90m') && self.d.getMinutes() == 90
self.l.all(x, x.size() == 1) && self.l.exists(x, x == 'y') && self.l.exists_one(x, x == 'x')
self.l.map(x, x + '!') == ['x!', 'y!'] && self.n.filter(x, x > 1) == [3, 2]
self.n.sum() == 6 && self.n.max() == 3 && self.n.min() == 1 && !self.n.isSorted()
self.m.all(k, k == 'k' && self.m[k] == 'v') && 'k' in self.m && !('z' in self.m)
self.m.k == 'v'
self.l == ['x', 'y'] && self.l != ['y', 'x'] && self.l + ['z'] == ['x', 'y', 'z']
type(self.q) == string && self.q.matches('^[0-9]+%$')
type(self.a) == double && type(self.b) == int && type(self.l) == list
self.?o.?x.orValue(0) == 1 && self.?function.hasValue() == false && !has(self.function)
optional.of(1).optMap(x, x + 1).value() == 2 && self.l[?5].orValue('none') == 'none'
quantity('1Gi').isGreaterThan(quantity('1G')) && isQuantity('500m') && !isQuantity('x')
quantity('2').add(1).compareTo(quantity('3')) == 0 && quantity('1k').asInteger() == 1000
url('https://a:8080/x?k=1').getHost() == 'a:8080' && url('https://a:8080/x').getPort() == '8080' && isURL('/x')
ip('10.0.0.1').family() == 4 && cidr('10.0.0.0/8').containsIP('10.1.2.3') && !isIP('10.0.0')
cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && cidr('10.0.0.0/8').prefixLength() == 8
sets.contains([1, 2], [1]) && sets.intersects([1], [1, 2]) && sets.equivalent([1, 2], [2, 1])
int('7') == 7 && double('1.5') == 1.5 && string(5) == '5' && bool('true') && bytes('a') == b'a'
true || self.l[9] == 'x'
!(false && self.l[9] == 'x')
self.b > 1 ? self.o.x == 1 : self.l[9] == 'x'
self.l.exists(x, x == 'x' || self.l[9] == 'x')
'a' in ['a', 'b'] && size('äö') == 2 && r'\\d' == '\\\\d' && '\\u00e9' == 'é'
self.n.map(i, i > 1, i * 2) == [6, 4] && self.l.transformList(i, v, v + string(i)) == ['x0', 'y1']
""".strip().splitlines()
FAULTS = {
    "self.l[9] == 'x'": "index out of bounds: 9 evaluating rule",
    "self.m['z'] == 'x'": "no such key: z evaluating rule",
    "int(self.s) == 1": "type conversion error from 'string' to 'int' evaluating rule",
    "self.b / 0 == 1": "division by zero evaluating rule",
    "9223372036854775807 + self.b > 0": "integer overflow evaluating rule",
    "self.q > 1": "'no such overload': call arguments did not match",
    "quantity(self.s).isInteger()": "quantities must match the regular expression",
    "url(self.s).getScheme() == ''": "URL parse error during conversion from string: parse",
    "optional.none().value() == 1": "optional.none() dereference evaluating rule",
}


def faults(rule: str, old: Any = None) -> list[str]:
    node = structural({"type": "object", "properties": PROPERTIES, "x-kubernetes-validations": [{"rule": rule}]})
    return [cause.message for cause in (check_rules(node, VALUE, old) if old else check_rules(node, VALUE))]


@pytest.mark.parametrize("rule", TRUE)
def test_rules_that_hold(rule: str) -> None:
    assert faults(rule) == []


@pytest.mark.parametrize(("rule", "said"), FAULTS.items(), ids=FAULTS.keys())
def test_rules_that_cannot_be_evaluated_say_why(rule: str, said: str) -> None:
    (message,) = faults(rule)
    assert message.startswith(f'Invalid value: "object": {said}')


def test_a_set_is_the_same_in_any_order() -> None:
    assert faults("self.set == oldSelf.set", {**VALUE, "set": ["q", "p"], "b": 1}) == []
    assert faults("self.l == oldSelf.l", {**VALUE, "l": ["y", "x"]}) != []


FORMATS: dict[str, tuple[list[str], list[str]]] = {
    "date-time": (["2026-11-29T13:00:00Z", "2026-11-29t13:00:00.5+01:00"], ["2026-11-29", "2026-11-29T24:00:00Z", ""]),
    "date": (["2024-02-29"], ["2023-02-29", "2024-2-1"]),
    "duration": (["1h", "1.5h", "-3s", "0", "3 days", "1h30m"], ["5", "", "h", "1x"]),
    "uri": (["http://a/b", "/a", "a:b", "https://x:1/"], ["", "a b", "1.2.3.4", "http://a b/", "http://a:x/", "::1"]),
    "hostname": (["a", "a-b", "example.com", "1h"], ["A_B", "", "a..b", "-a", "x@y.z"]),
    "ipv4": (["1.2.3.4"], ["1.2.3", "01.2.3.4", "::1", "1.2.3.4/8"]),
    "ipv6": (["::1", "2001:db8::1"], ["1.2.3.4", "fe80::1%eth0"]),
    "cidr": (["1.2.3.0/24", "1.2.3.4/0", "::/64"], ["1.2.3.4", "1.2.3.0/33", "1.2.3.0/255.0.0.0"]),
    "mac": (["00:11:22:33:44:55", "0011.2233.4455"], ["00:11:22:33:44", "00-11:22-33:44-55"]),
    "byte": (["aGk=", "AAAA"], ["", "aGk", "a!"]),
    "email": (["a@b", "x@y.z", "N <x@y.z>"], ["x", "x@", "@y", "a b@c"]),
    "uuid": (["00000000-0000-0000-0000-000000000000", "0" * 32], ["0" * 31, "g" * 32]),
    "uuid4": (["00000000-0000-4000-8000-000000000000"], ["00000000-0000-3000-8000-000000000000"]),
    "isbn": (["0321751043", "978-0321751041"], ["0321751044"]),
    "creditcard": (["4111111111111111"], ["4111111111111112"]),
    "hexcolor": (["#fff", "ffffff"], ["#ffff"]),
    "k8s-short-name": (["a", "0-a"], ["a.b", "A", "a-", "x" * 64]),
    "k8s-long-name": (["a.b", "x" * 64], ["a..b", ".a", "A"]),
    "quantity": (["1Gi", "5", "-1"], ["x", ""]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "texts"), FORMATS.items(), ids=FORMATS.keys())
def test_formats_are_checked(name: str, texts: tuple[list[str], list[str]]) -> None:
    assert effective("string", name) == name
    assert {text: fits(name, text) for text in [*texts[0], *texts[1]]} == {
        **dict.fromkeys(texts[0], True), **dict.fromkeys(texts[1], False),
    }  # fmt: skip


def test_a_format_of_another_type_or_an_unknown_one_has_no_effect() -> None:
    assert [effective(*pair) for pair in (("string", "nonsense"), ("number", "int32"), ("object", "date"))] == [""] * 3
