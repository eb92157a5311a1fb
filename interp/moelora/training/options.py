"""The option that an answer settles on.

Forms that are searched for, strongest first. Of several equally strong statements the last counts;
one that names several options ("A or B"), or denies one ("not A"), settles on none:

1. a statement: "the answer is B", "Answer: B", "\\boxed{B}", "I choose B", "it must be B",
   "not A but B", "B is correct", or a line that holds nothing else;
2. the option that the text begins with: "B", "(B)", "B: because it is so", "b)";
3. the option that it names in passing: "(B)", "option B"; if it names one only.

Single letters count in either case. Where a letter is a word as well ("A bar magnet", "I think",
"vitamin C"), it is an option only if what stands around it says so.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from interp.checked import checked
from interp.moelora.data.numbers import as_a_word

_MARKUP = re.compile(
    r"\\(?:boxed|fbox|text|textbf|mathrm|mathbf|mathsf)\s*(?=\{)|[*_`$]|\\[()\[\]]"
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\}){1,80})\}")
_TAGGED = re.compile(
    r"<((?:final[ _-]?)?(?:answer|option|choice|result|response|output))>\s*([^<>]{1,80}?)\s*</\1>",
    re.I,
)
_ASKED = re.compile(r"(?s)\A\s*Q(?:uestion)?:.*\bA:")
_TAG = re.compile(r"</?[a-z][\w-]+>", re.I)
_BOLD = re.compile(r"(\*\*|__)\s*[(\[]?\s*(\w)\s*[)\].:]*\s*\1")
_IS = (
    r"(?:is|was|are|be|must be|should be|would be|will be|has to be|seems to be|'s|:|=|->|→"
    r"|[-–—](?=\s))(?:[\s:]|[-•–]\s)*"
)
_NAMED = (
    r"(?:the|an?(?=\s)|my|correct|right|best|final|option|choice|letter|answer|number|either|both|"
    r"only|just|simply|(?:most |very |more )?(?:likely|probably)|indeed|actually|definitely|"
    r"clearly|certainly|obviously|therefore|thus|still)"
)
_CHOSEN = (
    r"(?:choose|chose|pick|picked|select|selected|go(?:ing)? (?:with|for)|went with|settle on|"
    r"settled on|opt for|vote for|prefer|conclude)"
)
_SURE = (
    r"(?:it is|it's|that is|that's|must be|should be|has to be|can only be|so|thus|hence|"
    r"therefore|definitely|clearly|certainly|obviously|surely|probably|likely|maybe|perhaps|"
    r"i think|i believe|i guess|i say|i'd say|i'd guess|would say|would guess|"
    r"my (?:guess|pick|vote|selection)(?: is|:)|"
    r"but rather|but|instead|sure|yes|okay|ok)"
)
_LIKELY = (
    r"(?:most |more |very |quite )?(?:likely|probable|plausible|probably|appropriate|accurate|"
    r"suitable|fitting|logical|reasonable|convincing)"
)
_GOOD = (
    rf"(?:correct|right|true|best|(?:the )?{_LIKELY}\b[\w ]{{0,20}}|"
    r"the (?:correct|right|best|true|only)\b[\w ]{0,20}|the answer)"
)
_DETERMINER = (
    r"(?!\s+(?!(?:because|since|as|for|it|its|he|she|they|we|you|i|this|that|these|those|the|there|"
    r"not|and|or|but|is|was|if|when)\b)(?-i:[a-z]))"
)
"""Behind "no": not a word that it would deny, as in "no doubt"."""
_BAD = (
    r"(?:is|are|was|were|would be|looks|seems)\s+(?:all |both |also |clearly |obviously )?"
    r"(?:wrong|incorrect|false|not\b|no\b|out\b|excluded|impossible|a distractor)"
    r"|isn['’]t|aren['’]t|can['’]?t|cannot|does not|doesn['’]t|fails\b"
)
_NOT = re.compile(r"\b(?:not|never|neither|nor|cannot|except|eliminate|exclude)\b|n['’]t\b", re.I)
_CLOSED = re.compile(r"\s*(?:$|[.,:;!?()\[\]\n]|[-–—]\s)")
_REASONED = re.compile(
    r"\s*(?:because|since|as|for|due|given|and|but|not|"
    r"is (?:the )?(?:correct|right|best|true|answer))\b",
    re.I,
)
_NUMBERED = re.compile(r"([A-Za-z]+)\d+")
_WORDS = frozenset("aAiI")
"""Letters that are words."""


@checked
def extract_option(text: str, options: Sequence[str]) -> str | None:
    """The option that a text settles on, as `options` have it; None for none or several."""
    if not options:
        return None
    shapes = _shapes_of(tuple(options))
    text = shapes.joined(text)
    marked = _BOXED.sub(r"\nthe answer is \1 .\n", _ASKED.sub("Answer:", text))
    marked = _TAGGED.sub(r"\nthe answer is \2 .\n", marked)
    marked = _BOLD.sub(r"(\2)", _TAG.sub("\n", marked))
    plain = _MARKUP.sub("", marked).replace("{", " ").replace("}", " ").strip()
    for find in (shapes.stated, shapes.leading, shapes.passing):
        found = find(plain)
        if found is not None:
            return next(iter(found)) if len(found) == 1 else None
    return None


class _Shapes:
    """How a text names one of the options. What is found is the set of options named there."""

    def __init__(self, options: tuple[str, ...]) -> None:
        self.option = {option.casefold(): option for option in options}
        self.letters = all(len(option) == 1 for option in options)
        numbered = [_NUMBERED.fullmatch(option) for option in options]
        stems = {match[1] for match in numbered if match}
        self._apart = re.compile(
            rf"\b({'|'.join(map(re.escape, sorted(stems)))})\s(?=\d+\b)" if stems else r"()(?!)",
            re.I,
        )
        option = "|".join(
            as_a_word(text) + (_DETERMINER if text.casefold() == "no" else "")
            for text in sorted(options, key=len, reverse=True)
        )
        item = rf"[\"'“‘(\[<]*\s*(?:{option})(?![-'’]\w)\s*[\"'”’)\]>]*"
        joined = (
            r"\s*(?:[,/&;|]|,?\s*\b(?:or|and|then)\b(?:\s+(?:maybe|perhaps|possibly|then))?"
            r"|,\s*(?:maybe|perhaps|possibly)\b|(?<=[)\]>])(?=[(\[<]))\s*"
        )
        several = rf"(?P<named>{item}(?:{joined}(?:{_NAMED}\s+)*{item})*)"
        end = r"(?P<rest>.*)"
        some = rf"(?:(?:{_NAMED})\b[\s:\"'“]*)*"
        flags = re.IGNORECASE
        self._mention = re.compile(option, flags)
        self._behind = re.compile(
            rf"(?:\banswer\b(?:\s+(?:to|for|of)\b[^.:\n]{{0,60}}?)?\s*{_IS}"
            rf"|\b(?:options?|choices?|letter|solution|conclusion|response|result|ans\.?|pick|guess|"
            rf"vote|selection)\s*{_IS}"
            rf"|\b(?:final|correct|right|best)\s+(?:answer|option|choice|one)\b\s*{_IS}?"
            rf"|\banswer\b|####|\b{_CHOSEN}\b\s*:?)"
            rf"\s*{some}{several}(?=(?P<rest>[^\n]*))",
            flags,
        )
        self._sure = re.compile(rf"\b{_SURE}\b[\s,:]*{some}{several}(?=(?P<rest>[^\n]*))", flags)
        self._judged = re.compile(
            rf"{several}\s*(?:(?:is|are|must be|seems|looks)\s+{_GOOD}"
            rf"|\?\s*(?:yes|right|correct|true)\b|(?:is|does)[\s.!]*$)(?=(?P<rest>[^\n]*))",
            flags | re.MULTILINE,
        )
        self._alone = re.compile(
            rf"(?:^|(?<=[.!?;\n]))\s*{some}(?P<named>{item}(?:(?:{joined}|[\s.!]+)"
            rf"(?:{_NAMED}\s+)*{item})*)[\s.!]*(?=$|\n)(?P<rest>)",
            flags,
        )
        self._first = re.compile(rf"\W*{some}{several}{end}", flags | re.DOTALL)
        self._listed = re.compile(rf"^\s*[(\[]?({option})[).:\]]\s+\S", flags | re.MULTILINE)
        self._between = re.compile(
            rf"(?:[(\[]\s*|(?P<called>\b(?:option|choice)\s+)[(\[]?|\banswer\s+[(\[]?){several}"
            rf"(?=(?P<rest>[^\n]*))",
            flags,
        )

    def joined(self, text: str) -> str:
        """A text with "solution 2" as the option "solution2", where there is such a one."""
        return self._apart.sub(r"\1", text)

    def stated(self, text: str) -> frozenset[str] | None:
        """The options that the last statement of the text names."""
        last: tuple[int, frozenset[str]] | None = None
        for pattern in (self._behind, self._judged, self._sure, self._alone):
            for match in pattern.finditer(text):
                if not self._counts(match, text, weak=pattern is self._sure):
                    continue
                at = match.end("named")
                if last is None or at >= last[0]:
                    last = at, self._named(match)
        return None if last is None else last[1]

    def leading(self, text: str) -> frozenset[str] | None:
        """The options that the text begins with."""
        match = self._first.match(text)
        if match is None or not self._counts(match, text, leading=True):
            return None
        if self.letters and len({letter.casefold() for letter in self._listed.findall(text)}) > 1:
            return None  # the options are repeated, one a line
        return self._named(match)

    def passing(self, text: str) -> frozenset[str] | None:
        """What is named in passing; words that are options anywhere, the first that counts."""
        found: frozenset[str] = frozenset()
        pattern = self._between if self.letters else self._mention
        for match in pattern.finditer(text):
            if self.letters:
                if self._counts(match, text, called=bool(match["called"])):
                    found |= self._named(match)
            elif not _denied(text[: match.start()]):
                return frozenset({self.option[match[0].casefold()]})
        return found or None

    def _named(self, match: re.Match[str]) -> frozenset[str]:
        named = self._mention.findall(match["named"])
        return frozenset(self.option[option.casefold()] for option in named)

    def _counts(
        self,
        match: re.Match[str],
        text: str,
        *,
        weak: bool = False,
        leading: bool = False,
        called: bool = False,
    ) -> bool:
        """Whether a match is meant as an answer: not denied, and the letter no word."""
        named, rest = match["named"], match["rest"] or ""
        if re.match(rf"\s*,?\s*(?:{_BAD})", rest, re.IGNORECASE):
            return False
        if _denied(text[: match.start("named")]):
            return False
        if not self.letters:
            return True
        closed = _CLOSED.match(rest) or named.strip()[-1] in ")]\"'”’>"
        if closed or _REASONED.match(rest):
            return True
        if weak:
            return False
        letter = named.strip(" \"'“‘(<[")[:1]
        if called and letter.isupper() and letter != "I":
            return True
        if letter in _WORDS or letter.islower():
            return False
        return not leading or bool(re.match(r"\s*[A-Z\d]", rest))


def _denied(before: str) -> bool:
    """Whether a negation stands before, in the same clause."""
    clause = re.split(r"[;.!?:\n,]|\bbut\b|\brather\b|\binstead\b|\bso\b", before, flags=re.I)[-1]
    return bool(_NOT.search(clause))


_shapes_of = lru_cache(maxsize=256)(_Shapes)
