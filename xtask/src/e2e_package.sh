#!/bin/sh
# Runs on the node of `cargo xtask e2e-package`. Results go to the second serial port, a line each:
# `CHECK name ok|failed details`, `SEEN what`, `END boot`.

set -x
ALLOWED=198.51.100.2
FORBIDDEN=198.51.100.3
PIN=/sys/fs/bpf/egress

# A network with both addresses behind a link, in a namespace that stands for the rest of the world.
network() {
    ip netns add world
    ip link add out type veth peer name in netns world
    ip address add 198.51.100.1/24 dev out
    ip link set out up
    ip netns exec world ip address add $ALLOWED/24 dev in
    ip netns exec world ip address add $FORBIDDEN/24 dev in
    ip netns exec world ip link set in up
    ip netns exec world ip link set lo up
    serve
}

# Answers at both addresses until the unit ends that called it.
serve() {
    ip netns exec world nc -lk 80 >/dev/null 2>&1 &
    for _ in $(seq 50); do
        ip netns exec world nc -z -w 1 $ALLOWED 80 && return
        sleep 0.1
    done
}

reaches() {
    nc -z -w 2 "$1" 80 2>/dev/null
}

say() {
    echo "$*" >/dev/ttyS1
}

# check NAME COMMAND...: what a command says when it fails is why.
check() {
    name=$1
    shift
    if why=$("$@" 2>&1); then
        say "CHECK $name ok"
    else
        say "CHECK $name failed $* : $(echo "$why" | tr '\n' ' ' | tail -c 400)"
    fi
}

no() {
    ! "$@"
}

# under_traffic NAME COMMAND...: what is allowed passes, and what is not does not, all the while.
under_traffic() {
    name=$1
    shift
    rm -f /e2e/stop /e2e/lost /e2e/passed /e2e/tried
    (
        while [ ! -e /e2e/stop ]; do
            reaches $ALLOWED || echo lost >>/e2e/lost
            reaches $FORBIDDEN && echo passed >>/e2e/passed
            echo tried >>/e2e/tried
        done
    ) &
    traffic=$!
    sleep 2
    why=$("$@" 2>&1)
    code=$?
    sleep 2
    touch /e2e/stop
    wait $traffic
    lost=$(cat /e2e/lost 2>/dev/null | wc -l)
    passed=$(cat /e2e/passed 2>/dev/null | wc -l)
    tried=$(wc -l </e2e/tried)
    if [ $code = 0 ] && [ "$lost" = 0 ] && [ "$passed" = 0 ]; then
        say "CHECK $name ok"
        say "SEEN $name: $tried times each, $lost allowed lost, $passed forbidden passed"
    else
        say "CHECK $name failed status $code, of $tried times $lost allowed lost, $passed forbidden passed: $(echo "$why" | tr '\n' ' ' | tail -c 300)"
    fi
}

is_version() {
    dpkg-query --show --showformat '${Version}' egress-agent | grep -qx "$1" && systemctl is-active --quiet egress-agent
}

is_enforcing() {
    no reaches $FORBIDDEN && reaches $ALLOWED
}

first_boot() {
    network
    check install dpkg --install /e2e/first.deb
    check install_starts systemctl is-active egress-agent
    systemctl is-active --quiet egress-agent || journalctl --unit egress-agent --no-pager | tail -n 40
    check install_enables systemctl is-enabled egress-agent
    check audits_first reaches $FORBIDDEN
    check status egress-agent status
    check has_manual test -e /usr/share/man/man1/egress-agent.1.gz
    check has_completions grep -q egress-agent /usr/share/bash-completion/completions/egress-agent
    cat >/etc/egress/policies/node.yaml <<POLICY
apiVersion: egress.dev/v1alpha1
kind: EgressPolicy
metadata: { name: node }
spec:
  mode: enforce
  allow:
    - cidrs: [$ALLOWED/32]
      ports: ["80/tcp"]
POLICY
    for _ in $(seq 60); do
        reaches $FORBIDDEN || break
        sleep 0.5
    done
    check enforces is_enforcing
    first=$(dpkg-query --show --showformat '${Version}' egress-agent)
    under_traffic restart systemctl restart egress-agent
    under_traffic upgrade dpkg --install /e2e/second.deb
    check upgraded is_version "$first+1"
    check upgrade_keeps_the_policy grep -q 'mode: enforce' /etc/egress/policies/node.yaml
    under_traffic downgrade dpkg --force-downgrade --install /e2e/first.deb
    check downgraded is_version "$first"
    under_traffic stop systemctl stop egress-agent
    check journal sh -c 'journalctl --unit egress-agent --output json | grep -q "data plane attached"'
    say "SEEN $(systemd-analyze security egress-agent --no-pager 2>/dev/null | tail -n 1)"
}

# Called by a unit of its own, as soon as there may be a network.
early() {
    [ -e /e2e/booted ] || return 0
    network
    { no reaches $FORBIDDEN && echo refused; reaches $ALLOWED && echo reached; } >/e2e/early 2>&1
}

is_before() {
    first=$(systemctl show --property ActiveEnterTimestampMonotonic --value "$1")
    second=$(systemctl show --property ActiveEnterTimestampMonotonic --value "$2")
    say "SEEN $1 at $first us, $2 at $second us"
    [ "$first" -gt 0 ] && [ "$first" -lt "$second" ]
}

second_boot() {
    check boot_refuses_at_once grep -qx refused /e2e/early
    check boot_reaches_at_once grep -qx reached /e2e/early
    check boot_order is_before egress-agent.service network-pre.target
    check boot_status egress-agent status
    # The one of the early unit ended with it.
    serve
    check remove dpkg --remove egress-agent
    check remove_ends_enforcement reaches $FORBIDDEN
    check remove_leaves_no_pin test ! -e $PIN/links
    check remove_leaves_no_program test ! -e /usr/bin/egress-agent
    check remove_keeps_the_policy test -e /etc/egress/policies/node.yaml
    check purge dpkg --purge egress-agent
    check purge_leaves_nothing sh -c 'for path in /etc/egress /var/lib/egress /var/log/egress; do [ ! -e $path ] || { echo $path; exit 1; }; done'
}

case "$1" in
early)
    early
    exit 0
    ;;
esac
if [ ! -e /e2e/booted ]; then
    first_boot
    touch /e2e/booted
    say "END 1"
else
    second_boot
    say "END 2"
fi
sync
systemctl poweroff
