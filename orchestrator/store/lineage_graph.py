"""What lineage is made of: nodes, edges, and how they read. `lineage.py` fills it from the tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# Raters named per comparison set in the readable tree; JSON names them all.
RATERS_SHOWN = 8


@dataclass(frozen=True)
class Node:
    """Something with an id: `key` is `artifact:12`, `candidate:5`, `comparison:7`, `rater:2` or the like."""

    key: str
    kind: str
    label: str
    facts: Mapping[str, object] = field(default_factory=dict, compare=False)
    """What else is told of it, as JSON values."""


@dataclass(frozen=True)
class Edge:
    """`parent` went into `child` in a role."""

    parent: str
    child: str
    role: str
    comparison_ids: list[int] | None = field(default=None, compare=False, hash=False)
    """A rater's comparisons in a comparison set."""


@dataclass
class Lineage:
    """The graph around one subject."""

    subject: str
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    _connected: set[tuple[str, str, str]] = field(default_factory=set, repr=False)

    def add(self, node: Node) -> bool:
        """Add a node; False where it was there."""
        if node.key in self.nodes:
            return False
        self.nodes[node.key] = node
        return True

    def connect(self, parent: str, child: str, role: str, comparison_ids: list[int] | None = None) -> None:
        """Add an edge, once."""
        if (parent, child, role) not in self._connected:
            self._connected.add((parent, child, role))
            self.edges.append(Edge(parent, child, role, comparison_ids))

    def upstream(self) -> list[Node]:
        """Everything the subject came from, nearest first."""
        return self._reach({key: [e.parent for e in edges] for key, edges in self._by("child").items()})

    def downstream(self) -> list[Node]:
        """Everything the subject went into, nearest first."""
        return self._reach({key: [e.child for e in edges] for key, edges in self._by("parent").items()})

    def to_json(self) -> Mapping[str, object]:
        """Subject, what it came from, what it went into, and the edges between them, as JSON values."""
        return {
            "subject": _node_json(self.nodes[self.subject]),
            "upstream": [_node_json(node) for node in self.upstream()],
            "downstream": [_node_json(node) for node in self.downstream()],
            "edges": [_edge_json(edge) for edge in self.edges],
        }

    def render(self) -> str:
        """Two readable trees, one per direction."""
        lines = [self.nodes[self.subject].label]
        for title, by, side in (("came from", "child", "parent"), ("went into", "parent", "child")):
            edges = self._by(by)
            if self.subject in edges:
                lines += [title, *self._tree(self.subject, edges, side, "", {self.subject})]
            else:
                lines.append(f"{title}: nothing recorded")
        return "\n".join(lines)

    def _tree(self, key: str, edges: dict[str, list[Edge]], side: str, indent: str, shown: set[str]) -> Iterable[str]:
        below = edges.get(key, [])
        raters = [
            edge for edge in below if getattr(edge, side).startswith("rater:") and edge.comparison_ids is not None
        ]
        hidden = raters[RATERS_SHOWN:]
        below = [edge for edge in below if edge not in hidden]
        for place, edge in enumerate(below):
            last = place == len(below) - 1 and not hidden
            node = self.nodes[getattr(edge, side)]
            count = "" if edge.comparison_ids is None else f" ({len(edge.comparison_ids)} comparisons)"
            again = " (see above)" if node.key in shown and node.key in edges else ""
            yield f"{indent}{'└─' if last else '├─'} {edge.role}: {node.label}{count}{again}"
            if node.key not in shown:
                shown.add(node.key)
                yield from self._tree(node.key, edges, side, indent + ("   " if last else "│  "), shown)
        if hidden:
            num_hidden = sum(len(edge.comparison_ids or ()) for edge in hidden)
            yield f"{indent}└─ and {len(hidden)} more raters ({num_hidden} comparisons); --json names them"

    def _by(self, side: str) -> dict[str, list[Edge]]:
        found: dict[str, list[Edge]] = {}
        for edge in self.edges:
            found.setdefault(getattr(edge, side), []).append(edge)
        return found

    def _reach(self, neighbours: dict[str, list[str]]) -> list[Node]:
        seen, queue = {self.subject: None}, [self.subject]
        for key in queue:
            for other in neighbours.get(key, []):
                if other not in seen:
                    seen[other] = None
                    queue.append(other)
        return [self.nodes[key] for key in queue[1:]]


def _node_json(node: Node) -> Mapping[str, object]:
    return {"key": node.key, "kind": node.kind, "label": node.label, **node.facts}


def _edge_json(edge: Edge) -> Mapping[str, object]:
    ends = {"parent": edge.parent, "child": edge.child, "role": edge.role}
    return ends if edge.comparison_ids is None else {**ends, "comparison_ids": edge.comparison_ids}
