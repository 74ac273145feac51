"""Make a LAN of network namespaces with a node on each host, say how to use it, wait for Ctrl-C, take it down."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import netlan
from netlan import Host

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")
MESHNODE = Path(__file__).parent / "meshnode"
START_LIMIT_S = 60.0
"""For a slow machine; a usual one needs two seconds."""
CLOSE_LIMIT_S = 5.0
"""How long the nodes may take to say goodbye."""
HELP = """\
The hosts are network namespaces on a bridge: the network of this machine is not touched, and its files are shared. The first
node serves the demo model, the others serve none and ask it. All nodes have one token, and find each other by mDNS.

To break things (NAME of a host and BRIDGE as this command prints them):
  ip -n BRIDGE link set alpha-eth0 nomaster     alpha is cut off and nobody is told; `master br0` mends it
  ip -n BRIDGE link set alpha-eth0 down         alpha's cable is pulled; `up`
  ip netns exec NAME iptables -A INPUT -p udp --dport 5353 -j DROP
                                                a host hears no mDNS; `iptables -F` undoes all such rules
  ip -n NAME address add 10.77.0.99/24 dev eth0    a host has one more address; `del`
"""


def main() -> int:
    asked = parse(sys.argv[1:])
    if why := netlan.available():
        print(
            f"scripts/lan: {why}\nIt needs Linux, root and two tools. {netlan.INSTALL}\nThen: sudo scripts/lan", file=sys.stderr
        )
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="meshnode-lan-") as directory, netlan.lan() as made:
        base = Path(directory)
        hosts = [made.host(name_of(number)) for number in range(asked.nodes)]
        try:
            start_nodes(hosts, base, by_address=asked.peers)
            explain(hosts, base, bridge=made.network().namespace)
            signal.pause()
        except KeyboardInterrupt:
            return 0
        finally:
            for again in (signal.SIGINT, signal.SIGTERM):
                signal.signal(again, signal.SIG_IGN)  # asking twice would leave half of it behind
            print("\nTaking the LAN down.", flush=True)
            stop_nodes(hosts)
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/lan",
        description="A LAN of N machines on this one, with a node on each, until Ctrl-C. As root.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("nodes", nargs="?", type=host_count, default=3, metavar="N", help="how many hosts (default: 3)")
    parser.add_argument("--peers", action="store_true", help="name the first node to the others, instead of leaving it to mDNS")
    return parser.parse_args(arguments)


def host_count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 200:
        raise argparse.ArgumentTypeError(f"{text}: a number from 1 to 200 is needed")
    return int(text)


def name_of(number: int) -> str:
    return NAMES[number] if number < len(NAMES) else f"node{number + 1}"


def start_nodes(hosts: list[Host], base: Path, *, by_address: bool) -> None:
    """All at once, as after a power cut. Returns when each has written its run file; exits where one does not."""
    token = base / "token"
    token.touch(mode=0o600)
    new = [sys.executable, "-m", "meshnode", "token", "new", "--data-dir", str(base / "maker")]
    token.write_text(subprocess.run(new, check=True, capture_output=True, text=True).stdout)
    for host in hosts:
        flags = [] if host is hosts[0] else ["--no-worker", *(["--peer", hosts[0].address] if by_address else [])]
        start_node(host, base, "--token-file", str(token), *flags)
    begun = time.monotonic()
    for host in hosts:
        while not (base / host.name / "run.json").exists():
            if host.processes[0].poll() is not None or time.monotonic() - begun > START_LIMIT_S:
                sys.exit(f"The node on {host.name} did not start:\n{log_of(host, base).read_text()}")
            time.sleep(0.05)


def start_node(host: Host, base: Path, *flags: str) -> None:
    command = [sys.executable, "-m", "meshnode", "up", "--name", host.name, "--data-dir", str(base / host.name), *flags]
    with log_of(host, base).open("w") as log:
        # A session of its own: Ctrl-C is for us, who then stop the nodes in our own time.
        host.popen(*command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)


def log_of(host: Host, base: Path) -> Path:
    return base / f"{host.name}.log"


def explain(hosts: list[Host], base: Path, *, bridge: str) -> None:
    sudo = "sudo " if os.environ.get("SUDO_USER") else ""
    print(f"\nA LAN of {len(hosts)}, with a node on each host. The shell of a host:\n")
    for host in hosts:
        print(f"  {host.name:<8} {host.address:<12} {sudo}ip netns exec {host.namespace} bash")
    last = hosts[-1]
    run, data = f"{sudo}ip netns exec {last.namespace}", base / last.name
    print(f"\nThe mesh as {last.name} sees it:\n\n  {run} {MESHNODE} status --data-dir {data}")
    print(f"\nAsk {last.name} for the model of {hosts[0].name}:\n")
    print(f"  {run} curl -sN http://127.0.0.1:4860/v1/chat/completions -H 'Content-Type: application/json' \\")
    print(
        '    -d \'{"model": "demo", "stream": true, "messages": [{"role": "user", "content": "Tell me a story about a fox."}]}\''
    )
    print(
        f"\nTo break things, see scripts/lan --help; BRIDGE is {bridge}. Logs: {base}/*.log\n\nCtrl-C takes all of it down.",
        flush=True,
    )


def stop_nodes(hosts: list[Host]) -> None:
    """Let them say goodbye, all at once; what still runs after that is killed with the LAN."""
    running = [process for host in hosts for process in host.processes]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + CLOSE_LIMIT_S
    while any(process.poll() is None for process in running) and time.monotonic() < deadline:
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
