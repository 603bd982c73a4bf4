"""The answer in plain words, assembled from the numbers.

Every sentence names what it is about: the smoothed (or otherwise defended) classifier is another
classifier than the bare model, a certificate is about small changes of one image, and a
probabilistic one holds with probability 1 - alpha.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from certbench.figures import wording
from certbench.report import crosstable
from certbench.report.numbers import Numbers, Value, defended

if TYPE_CHECKING:
    from certbench.report.sources import Sources


@dataclass(frozen=True)
class Tile:
    """One number with its caption.

    Attributes:
        number: The number.
        caption: What it is.
        small: Its interval, or a remark.
    """

    number: str
    caption: str
    small: str = ""


@dataclass
class Finding:
    """What was found about one defended model on one dataset.

    Attributes:
        title: The defended model and the dataset.
        tiles: The numbers that matter most.
        sentences: What they mean.
        promise: The guarantee, exactly.
        certified: Certified accuracy at the reference radius, to order findings by.
    """

    title: str
    tiles: list[Tile] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    promise: list[str] = field(default_factory=list)
    certified: float = 0.0


def build(sources: Sources, numbers: Numbers) -> list[Finding]:
    """Findings about every defended model on clean images, the strongest first."""
    made = []
    for place in numbers.places:
        for pair in crosstable.ordered(numbers.pairs[place], sources.config):
            if defended(pair) and numbers.get("certified_accuracy", place, pair, parameter=0.0):
                made.append(_finding(sources, numbers, place, pair))
    return sorted(made, key=lambda finding: -finding.certified)


def headline(findings: list[Finding], violations: int, sound: bool | None) -> tuple[list[str], int]:
    """The answer to the page's question in at most three paragraphs.

    Args:
        findings: The strongest first.
        violations: Number of certificates broken inside their region.
        sound: Whether chance explains them; None without an audit.

    Returns:
        The paragraphs, and how many of the first finding's sentences are among them.
    """
    if not findings:
        return ["No certificate has been made yet, so there is no answer yet."], 0
    told = findings[0].sentences[:1] if violations and not sound else findings[0].sentences[:2]
    said = list(told)
    if violations:
        broken = wording.plural(violations, "certificate was", "certificates were")
        said.insert(
            1,
            f"{broken} broken inside the certified region, as the failure probability α allows."
            if sound
            else f"But {broken} broken inside the certified region, more than α explains: until it "
            "is understood why, trust none of the certified numbers.",
        )
    return said, len(told)


def reference_radius(numbers: Numbers, place: tuple, pair: tuple[str, str]) -> float | None:
    """The radius that a finding speaks of: a threat's of the experiment, or the middle one."""
    for metric in numbers.metrics(place, pair):
        if metric.startswith("certified_at:"):
            for radius in numbers.over(metric, place, pair):
                if radius and radius in numbers.over("certified_accuracy", place, pair):
                    return radius
    return crosstable.middle(numbers.radii(place))


def _finding(sources: Sources, numbers: Numbers, place: tuple, pair: tuple[str, str]) -> Finding:
    radius = reference_radius(numbers, place, pair)
    threat = _threat(sources, place, pair)
    certified = numbers.get("certified_accuracy", place, pair, parameter=radius) if radius else None
    made = Finding(f"{wording.series(*pair)}, {wording.place(place[0], place[1])}")
    made.certified = certified.value if certified else 0.0
    ball = f"{wording.norm(threat.get('threat_norm'))} radius {radius:g}" if radius else ""
    if radius and threat.get("threat_kind") == "patch":
        ball = f"a patch of {radius:g} pixels"
    right = numbers.get("certified_accuracy", place, pair, parameter=0.0)
    bare = numbers.get("accuracy", place, (pair[0], "none"))
    for value, caption in (
        (bare, "right, bare model"),
        (right, "right, defended, clean images"),
        (certified, f"right and certified to {ball}"),
    ):
        if value is not None:
            made.tiles.append(Tile(value.percent, caption, value.interval))
    if certified is not None and radius:
        made.sentences.append(_certified(sources, place, pair, certified, radius, threat, bare))
    attacked = _attacked(numbers, place, pair, threat)
    made.sentences += attacked.sentences
    made.tiles += attacked.tiles
    shifted = _shifted(numbers, place, pair, radius)
    made.sentences += shifted.sentences
    made.tiles += shifted.tiles
    abstains = numbers.get("abstain_rate", place, pair)
    if abstains is not None:
        made.tiles.append(Tile(abstains.percent, "abstains on clean images", abstains.interval))
    cost = crosstable.per_certificate(sources, place, pair)
    if cost is not None and cost[0] is not None:
        passes, seconds = cost
        made.tiles.append(
            Tile(
                wording.number(passes),
                "forward passes per certificate",
                f"{wording.duration(seconds)} each" if seconds is not None else "",
            )
        )
        time = f" ({wording.duration(seconds)})" if seconds is not None else ""
        made.sentences.append(
            f"One certificate takes {wording.number(passes)} forward passes{time}; the bare model "
            "answers with one."
        )
    made.promise = promise(sources, numbers, place, pair, threat, radius)
    return made


def _threat(sources: Sources, place: tuple, pair: tuple[str, str]) -> dict[str, Any]:
    table = sources.certificates
    for name, wanted in zip(
        ("dataset", "split", "view", "model", "defense"), (*place, *pair), strict=True
    ):
        table = table[table[name] == wanted]
    return dict(table.iloc[0]) if len(table) else {}


def classifier(parameters: dict[str, Any]) -> str:
    """What the defended classifier is called: smoothed where the defence adds noise."""
    return (
        "smoothed classifier"
        if "sigma" in parameters.get("collect", {})
        else ("defended classifier")
    )


def _certified(
    sources: Sources,
    place: tuple,
    pair: tuple[str, str],
    certified: Value,
    radius: float,
    threat: dict[str, Any],
    bare: Value | None,
) -> str:
    name = classifier(sources.defenses.get(pair, {}))
    ball = _ball(threat, f"{radius:g}")
    text = (
        f"On {wording.plural(certified.n, 'image')} of {place[0]}, the {name} made of “{pair[0]}” "
        f"is right and certified against {ball} on {certified.percent} ({certified.interval})"
    )
    if bare is None:
        return text + "."
    gap = bare.value - certified.value
    if abs(gap) < 0.0005:
        return f"{text}, as many as the bare model classifies correctly without any proof."
    side = "fewer" if gap > 0 else "more"
    return (
        f"{text}: {wording.points(gap)} {side} than the bare model classifies correctly "
        f"({bare.percent}) without any proof."
    )


def _ball(threat: dict[str, Any], size: str) -> str:
    kind, norm = threat.get("threat_kind"), threat.get("threat_norm")
    if kind == "lp":
        return f"every change with {wording.norm(norm)} norm below {size}"
    if kind == "patch":
        return f"every {norm} patch with sides up to {size} pixels"
    return f"every {kind or 'change'} up to size {size}"


@dataclass
class _Part:
    tiles: list[Tile] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)


def _attacked(
    numbers: Numbers, place: tuple, pair: tuple[str, str], threat: dict[str, Any]
) -> _Part:
    part = _Part()
    inside: list[tuple[str, str, Value, Value]] = []
    outside: list[tuple[str, str, Value]] = []
    norm = f"{threat.get('threat_kind', 'lp')}-{threat.get('threat_norm')}-"
    for attack, threat_id in numbers.attacks.get(place, []):
        robust = numbers.get("robust_accuracy", place, pair, attack=attack)
        proven = numbers.get("proven", place, pair, attack=attack)
        if robust is None:
            continue
        if str(threat_id).startswith(norm) and proven is not None:
            inside.append((attack, threat_id, robust, proven))
        else:
            outside.append((attack, threat_id, robust))
    # The strongest attack is the one that leaves least.
    if inside:
        attack, threat_id, robust, proven = min(inside, key=lambda entry: entry[2].value)
        budget = wording.threat(threat_id)
        open_ = max(robust.value - proven.value, 0.0)
        undecided = (
            f"the other {wording.percent(open_)} are undecided"
            if round(open_, 4)
            else "none is undecided"
        )
        asked = numbers.get("abstain_rate", place, pair)
        some = asked is not None and robust.n < asked.n
        under = f"On the first {robust.n} images, under" if some else "Under"
        part.sentences.append(
            f"{under} {attack} with {budget} it still answers correctly on "
            f"{robust.percent} ({robust.interval}); {proven.percent} are proven, {undecided}."
            + _bare_under(numbers, place, pair, attack)
        )
        part.tiles.append(Tile(robust.percent, f"right under {attack} {budget}", robust.interval))
    for attack, threat_id, robust in sorted(outside, key=lambda entry: entry[2].value)[:2]:
        budget = wording.threat(threat_id)
        part.sentences.append(
            f"Outside its threat model the certificate proves nothing: under {attack} with "
            f"{budget} it is right on {robust.percent} ({robust.interval})."
        )
        part.tiles.append(Tile(robust.percent, f"right under {attack} {budget}", robust.interval))
    return part


def _bare_under(numbers: Numbers, place: tuple, pair: tuple[str, str], attack: str) -> str:
    found: list[str] = []
    for model, defense in numbers.pairs[place]:
        value = numbers.get("robust_accuracy", place, (model, defense), attack=attack)
        if value is not None and not defended((model, defense)):
            verb = "" if found else "stays right "
            found.append(f"bare “{model}” {verb}on {value.percent}")
    return f" Attacked likewise, {wording.listed(found)}." if found else ""


def _shifted(numbers: Numbers, place: tuple, pair: tuple[str, str], radius: float | None) -> _Part:
    part = _Part()
    rows: list[tuple[float, str, Value, Value | None]] = []
    names, _ = wording.variants(numbers.variants[place])
    for variant in numbers.variants_of(place, pair):
        right = numbers.get("certified_accuracy", place, pair, variant, parameter=0.0)
        if variant == "clean" or right is None:
            continue
        held = numbers.get("certified_accuracy", place, pair, variant, parameter=radius)
        rows.append((right.value, names[variant], right, held))
    if not rows:
        return part
    _, worst, right, held = min(rows, key=lambda row: (row[0], row[1]))
    bare = [
        (name, value)
        for variant, name in names.items()
        if variant != "clean"
        and (value := numbers.get("accuracy", place, (pair[0], "none"), variant)) is not None
    ]
    text = (
        f"Under natural shift it fares worst with {worst}: right on {right.percent} "
        f"({right.interval})"
    )
    if held is not None and radius:
        text += f", certified to {radius:g} on {held.percent} ({held.interval})"
    text += "."
    if bare:
        name, value = min(bare, key=lambda entry: entry[1].value)
        text += f" The bare model fares worst with {name}: {value.percent} ({value.interval})."
    text += " The certificate says nothing about such shifts, only about small changes after them."
    part.sentences.append(text)
    part.tiles.append(Tile(right.percent, f"right under {worst}, its worst shift", right.interval))
    return part


def promise(
    sources: Sources,
    numbers: Numbers,
    place: tuple,
    pair: tuple[str, str],
    threat: dict[str, Any],
    radius: float | None,
) -> list[str]:
    """The guarantee of one defended model, exactly, as sentences."""
    parameters = sources.defenses.get(pair, {})
    name = classifier(parameters)
    sigma = parameters.get("collect", {}).get("sigma")
    what = f"the {name}"
    said = []
    if sigma is not None:
        said.append(
            f"The {name} answers with the class that “{pair[0]}” gives most often when noise of "
            f"level σ\u00a0=\u00a0{sigma:g} is added to the image. It is not the bare model, and "
            "the certificate says nothing about the bare model."
        )
    kind, guarantee = threat.get("threat_kind"), threat.get("threat_guarantee")
    region = (
        f"for every change of the image with {wording.norm(threat.get('threat_norm'))} norm "
        "smaller than R (pixel values in [0, 1])"
        if kind == "lp"
        else f"{_ball(threat, 'R')} placed anywhere".replace("every", "for every", 1)
        if kind == "patch"
        else _ball(threat, "R").replace("every", "for every", 1)
    )
    if not guarantee:
        return said
    if guarantee == "detection":
        said.append(
            f"Where {what} certifies an image to R, no attack can cause a silent error {region}: "
            "it answers as before, or raises an alarm."
        )
    else:
        said.append(f"Where {what} certifies an image to R, its answer stays the same {region}.")
    alpha = threat.get("threat_alpha")
    if guarantee == "probabilistic" and wording.known(alpha):
        said.append(_probability(numbers, place, pair, float(alpha or 0.0), sources.rho, radius))
    elif guarantee == "deterministic":
        said.append("The certificate is deterministic: it has no failure probability.")
    return said


def _probability(
    numbers: Numbers,
    place: tuple,
    pair: tuple[str, str],
    alpha: float,
    rho: float | None,
    radius: float | None,
) -> str:
    clean = numbers.get("certified_accuracy", place, pair, parameter=0.0)
    text = (
        f"Each certificate holds with probability at least 1 − α = {1 - alpha:g}, over the noise "
        "drawn to make it."
    )
    if clean is None:
        return text
    expected = wording.number(clean.n * alpha)
    text += (
        f" Among {wording.plural(clean.n, 'certificate')} at most {expected} are expected to fail."
    )
    surely = numbers.get("certified_accuracy_surely", place, pair, parameter=radius)
    if surely is not None and radius and rho is not None:
        text += (
            f" With probability at least {1 - rho:g} over all of that noise together, at least "
            f"{surely.percent} of these images are right and robust to {radius:g}."
        )
    return text
