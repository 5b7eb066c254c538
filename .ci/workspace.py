"""Checks of the workspace that no cargo command makes. Needs Python 3.11 and cargo, no network.

    workspace.py commands   prints the commands of the README's first code block, one a line
    workspace.py check      dependency edges, licences and versions, length of files, README
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What the README promises: exactly these, and CI runs what it reads there.
README_COMMANDS = ["cargo run --release -- demo", "cargo test --workspace"]

# Direct edges between our crates, of any kind. Everything else between them is forbidden.
ALLOWED_EDGES = {
    "p2ptrain-protocol": set(),
    "p2ptrain-kernels": set(),
    "p2ptrain-node": {"p2ptrain-protocol", "p2ptrain-kernels"},
    "p2ptrain-netsim": {"p2ptrain-node", "p2ptrain-protocol", "p2ptrain-kernels"},
}

# What pure crates must not reach through any normal or build dependency.
PURE_CRATES = ["p2ptrain-protocol", "p2ptrain-kernels"]
IMPURE = re.compile(r"^(tokio|mio|socket2|quinn|libp2p|async-std|smol|p2ptrain)(-|_|$)")

# The style asks for about 800 lines; at this many a file must be split.
LINES_MAX = 900


def main():
    command = sys.argv[1] if len(sys.argv) == 2 else ""
    if command == "commands":
        print("\n".join(readme_commands()))
    elif command == "check":
        metadata = cargo_metadata()
        packages = list(built_packages())
        deny = tomllib.loads((ROOT / "deny.toml").read_text())
        problems = [*edges(metadata), *licences(packages, deny), *duplicates(packages, deny)]
        problems += [*lengths(), *readme()]
        for problem in problems:
            print(f"error: {problem}", file=sys.stderr)
        if problems:
            sys.exit(1)
        print(f"workspace: edges, lengths, README, and {len(packages)} packages are in order")
    else:
        sys.exit(__doc__)


def cargo_metadata():
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    command += ["--filter-platform", "x86_64-unknown-linux-gnu"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def edges(metadata):
    """Forbidden dependency edges."""
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    names = {packages[member]["name"]: member for member in metadata["workspace_members"]}
    for name, member in names.items():
        direct = {dep["name"] for dep in packages[member]["dependencies"]}
        ours = {dep for dep in direct if dep in names}
        for dep in sorted(ours - ALLOWED_EDGES.get(name, {"p2ptrain-kernels"})):
            yield f"{name} must not depend on {dep}"
    for name in PURE_CRATES:
        for path in reachable(names[name], nodes, packages):
            if IMPURE.match(path[-1]) and len(path) > 1:
                yield f"{name} must not depend on {path[-1]}: {' -> '.join(path)}"


def reachable(start, nodes, packages):
    """Paths of names from `start` to everything it needs to be built, tests aside."""
    seen, stack = {start}, [(start, [packages[start]["name"]])]
    while stack:
        node, path = stack.pop()
        yield path
        for dep in nodes[node]["deps"]:
            needed = any(kind["kind"] in (None, "build") for kind in dep["dep_kinds"])
            if needed and dep["pkg"] not in seen:
                seen.add(dep["pkg"])
                stack.append((dep["pkg"], [*path, packages[dep["pkg"]]["name"]]))


def built_packages():
    """(name, version, licence) of every package that is built. `cargo tree` names what is really
    built, `cargo metadata` more than that."""
    command = ["cargo", "tree", "--locked", "--workspace", "-e", "normal,build"]
    command += ["--prefix", "none", "--no-dedupe", "--format", "{p}|{l}"]
    tree = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in sorted(set(tree.splitlines()) - {""}):
        package, licence = line.split("|")
        name, version = package.split()[:2]
        yield name, version.removeprefix("v"), licence


def licences(packages, deny):
    """Packages whose licence deny.toml does not allow, by cargo-deny's rule."""
    allowed = set(deny["licenses"]["allow"])
    for name, version, expression in packages:
        if not expression:
            yield f"{name} {version} names no licence"
        elif not satisfied(expression, allowed):
            yield f"{name} {version} is under {expression}, which deny.toml does not allow"


def duplicates(packages, deny):
    """Packages of several versions, those aside that deny.toml skips."""
    skipped = [entry["crate"].split("@") for entry in deny["bans"]["skip"]]
    versions = {}
    for name, version, _ in packages:
        if not any(n == name and (version + ".").startswith(v + ".") for n, v in skipped):
            versions.setdefault(name, set()).add(version)
    for name, several in versions.items():
        if len(several) > 1:
            yield f"{name} has versions {', '.join(sorted(several))}; skip one in deny.toml, and why"
    banned = {entry["name"] for entry in deny["bans"]["deny"]}
    yield from (f"{name} is banned in deny.toml" for name in sorted(banned & set(versions)))


def satisfied(expression, allowed):
    """Whether an SPDX expression can be satisfied with the allowed licences."""
    tokens = re.findall(r"\(|\)|[^\s()/]+|/", expression.replace(" WITH ", "+WITH+"))
    tokens = ["OR" if token == "/" else token for token in tokens]

    def either():
        result = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            result |= both()
        return result

    def both():
        result = single()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            result &= single()
        return result

    def single():
        token = tokens.pop(0)
        if token == "(":
            result = either()
            tokens.pop(0)
            return result
        return token.replace("+WITH+", " WITH ") in allowed

    return either()


def lengths():
    """Rust files that are too long to be read in one go."""
    for path in sorted(ROOT.glob("*/**/*.rs")):
        if "target" in path.relative_to(ROOT).parts:
            continue
        lines = path.read_text().count("\n")
        if lines > LINES_MAX:
            yield f"{path.relative_to(ROOT)} has {lines} lines; split it ({LINES_MAX} at most)"


def readme():
    """The README's commands are those that CI runs."""
    if readme_commands() != README_COMMANDS:
        yield f"README.md's first code block has {readme_commands()}, expected {README_COMMANDS}"


def readme_commands():
    text = (ROOT / "README.md").read_text()
    block = re.search(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = block.group(1).splitlines() if block else []
    commands = [line.split("#")[0].strip() for line in lines]
    return [command for command in commands if command]


if __name__ == "__main__":
    main()
