//! Policies for the custom resources: good ones, bad ones, and bad ones that only the compiler can detect.

/// A bad policy, and a good one that differs in that alone.
pub(crate) struct Case {
    pub(crate) kind: &'static str,
    /// The names of both, where that is what it is about.
    pub(crate) name: Option<(&'static str, &'static str)>,
    pub(crate) good: &'static str,
    pub(crate) bad: &'static str,
}

const fn case(good: &'static str, bad: &'static str) -> Case {
    Case {
        kind: "EgressPolicy",
        name: None,
        good,
        bad,
    }
}

const fn cluster(good: &'static str, bad: &'static str) -> Case {
    Case {
        kind: "ClusterEgressPolicy",
        name: None,
        good,
        bad,
    }
}

const fn name(good: &'static str, bad: &'static str) -> Case {
    Case {
        kind: "EgressPolicy",
        name: Some((good, bad)),
        good: "{}",
        bad: "{}",
    }
}

/// A policy with this spec, in flow style.
pub(crate) fn policy(kind: &str, name: &str, spec: &str) -> String {
    let namespace = if kind == "EgressPolicy" {
        ", namespace: shop"
    } else {
        ""
    };
    format!(
        "apiVersion: egress.dev/v1alpha1\nkind: {kind}\nmetadata: {{ name: {name}{namespace} }}\nspec: {spec}\n"
    )
}

/// Every field of an EgressPolicy.
pub(crate) const FULL: &str = r#"apiVersion: egress.dev/v1alpha1
kind: EgressPolicy
metadata: { name: full, namespace: shop, labels: { team: payments }, annotations: { note: all of it } }
spec:
  podSelector:
    matchLabels: { app: payments, example.com/tier: web }
    matchExpressions:
      - { key: env, operator: In, values: [prod, staging] }
      - { key: env, operator: NotIn, values: [test] }
      - { key: example.com/team, operator: Exists }
      - { key: legacy, operator: DoesNotExist }
  mode: audit
  ttl: { min: 1h30m, grace: 2h, max: 7d }
  preexisting: judge
  dns: { queries: allowed }
  allow:
    - names: [api.example.com, "*.example.net", "md-*.blob.example.org", bücher.example, _srv.Example.com.]
      ports: ["443/tcp", "8000-8080/udp", any/sctp, icmp]
    - cidrs: [10.0.0.0/8, "fd00::/8", 192.0.2.7, "2001:db8::1", 0.0.0.0/0, "::/0"]
      ports: [any]
    - names: []
      cidrs: [192.0.2.0/24]
    - names: [shared.example.net]
      ports: ["443/tcp"]
      require: tls
    - serviceTags: [Storage.westeurope]
      ports: ["443/tcp"]
    - preset: aks/azure-global
      with: { location: eastus, privateCluster: true, customDns: [192.0.2.53] }
  deny:
    - names: [evil.example.net]
      ports: [any]
      require: none
    - cidrs: [10.99.0.0/16]
      ports: ["22/tcp"]
    - serviceTags: [storage.WESTEUROPE]
    - preset: aks/addon/key-vault
      with: { vaults: [a.example.com] }
"#;

/// Every field of a ClusterEgressPolicy.
pub(crate) const FULL_CLUSTER: &str = r#"apiVersion: egress.dev/v1alpha1
kind: ClusterEgressPolicy
metadata: { name: full }
spec:
  subject: pods
  namespaceSelector:
    matchLabels: { team: payments }
    matchExpressions:
      - { key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-system] }
  podSelector:
    matchLabels: { app: payments }
    matchExpressions:
      - { key: env, operator: In, values: [prod] }
  nodeSelector:
    matchLabels: { pool: system }
    matchExpressions:
      - { key: spot, operator: DoesNotExist, values: [] }
  ceiling: false
  mode: enforce
  ttl: { min: 0s, grace: 0s, max: 1s }
  preexisting: keep
  dns: { queries: any }
  allow:
    - names: [api.example.com]
      ports: ["443/tcp"]
      require: tls
    - cidrs: [10.0.0.0/8]
    - serviceTags: [Storage.westeurope]
    - preset: aks/azure-global
      with: { location: eastus }
  deny:
    - names: [evil.example.net]
      require: none
    - cidrs: [10.99.0.0/16]
      ports: ["22/tcp"]
    - serviceTags: [Storage.westeurope]
    - preset: aks/addon/key-vault
      with: { vaults: [a.example.com] }
"#;

/// Policies that both the schema and the compiler refuse.
pub(crate) const BAD: &[Case] = &[
    // Names of policies.
    name("lifelines", "lifeline"),
    // The spec.
    case("{ mode: audit }", "{ mode: on }"),
    case("{ mode: enforce }", "{ mode: Enforce }"),
    case("{ preexisting: judge }", "{ preexisting: drop }"),
    case(
        "{ dns: { queries: allowed } }",
        "{ dns: { queries: none } }",
    ),
    case("{ dns: { queries: any } }", "{ dns: any }"),
    case("{ ttl: { min: 30s } }", "{ ttl: 30s }"),
    case("{ ttl: { min: 30s } }", "{ ttl: { min: 30 } }"),
    case("{ ttl: { min: 1h1m } }", "{ ttl: { min: 1m1h } }"),
    case("{ ttl: { min: 1m } }", "{ ttl: { min: 1.5m } }"),
    case("{ ttl: { max: 7d } }", "{ ttl: { max: 8d } }"),
    case("{ ttl: { max: 168h } }", "{ ttl: { max: 169h } }"),
    case("{ ttl: { max: 604800s } }", "{ ttl: { max: 604801s } }"),
    case(
        "{ ttl: { min: 0s, max: 1s } }",
        "{ ttl: { min: 0s, max: 0s } }",
    ),
    case("{ allow: [] }", "{ allow: {} }"),
    case(
        "{ allow: [{ names: [a.example.com] }] }",
        "{ allow: [a.example.com] }",
    ),
    // Rules.
    case("{ allow: [{ names: [a.example.com] }] }", "{ allow: [{}] }"),
    case(
        "{ allow: [{ names: [a.example.com] }] }",
        "{ allow: [{ names: [] }] }",
    ),
    case(
        "{ deny: [{ cidrs: [10.0.0.0/8] }] }",
        "{ deny: [{ ports: ['22/tcp'] }] }",
    ),
    case(
        "{ allow: [{ names: [a.example.com] }] }",
        "{ allow: [{ names: a.example.com }] }",
    ),
    case(
        "{ allow: [{ names: [a.example.com], ports: ['443/tcp'] }] }",
        "{ allow: [{ names: [a.example.com], ports: [] }] }",
    ),
    case(
        "{ allow: [{ names: [a.example.com], ports: ['443/tcp'] }] }",
        "{ allow: [{ names: [a.example.com], ports: '443/tcp' }] }",
    ),
    case(
        "{ allow: [{ names: [a.example.com], ports: [1/tcp, 2/tcp, 3/tcp, 4/tcp, 5/tcp, 6/tcp, 7/tcp, 8/tcp] }] }",
        "{ allow: [{ names: [a.example.com], ports: [1/tcp, 2/tcp, 3/tcp, 4/tcp, 5/tcp, 6/tcp, 7/tcp, 8/tcp, 9/tcp] }] }",
    ),
    case(
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: [1/tcp, 2/tcp, 3/tcp, 4/tcp, 5/tcp, 6/tcp, 7/tcp, 8/tcp, 9/tcp] }] }",
        "{ allow: [{ names: [a.b], cidrs: [10.0.0.0/8], ports: [1/tcp, 2/tcp, 3/tcp, 4/tcp, 5/tcp, 6/tcp, 7/tcp, 8/tcp, 9/tcp] }] }",
    ),
    case(
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: [1/udp, 2/udp, 3/udp, 4/udp, 5/udp, 6/udp, 7/udp, 8/udp, 9/udp, 10/udp, 11/udp, 12/udp, 13/udp, 14/udp, 15/udp, 16/udp] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: [1/udp, 2/udp, 3/udp, 4/udp, 5/udp, 6/udp, 7/udp, 8/udp, 9/udp, 10/udp, 11/udp, 12/udp, 13/udp, 14/udp, 15/udp, 16/udp, 17/udp] }] }",
    ),
    case(
        "{ deny: [{ names: [a.example.com] }] }",
        "{ deny: [{ names: [a.example.com], ports: ['443/tcp'] }] }",
    ),
    case(
        "{ deny: [{ names: [a.example.com], ports: [any] }] }",
        "{ deny: [{ names: [a.example.com], ports: ['any/tcp'] }] }",
    ),
    case(
        "{ deny: [{ cidrs: [10.0.0.0/8], ports: ['443/tcp'] }] }",
        "{ deny: [{ names: [a.b], cidrs: [10.0.0.0/8], ports: ['443/tcp'] }] }",
    ),
    // Names.
    case(
        "{ allow: [{ names: ['*.example.com'] }] }",
        "{ allow: [{ names: ['*'] }] }",
    ),
    case(
        "{ allow: [{ names: ['*.com'] }] }",
        "{ allow: [{ names: ['*.'] }] }",
    ),
    case(
        "{ allow: [{ names: ['a*.b'] }] }",
        "{ allow: [{ names: ['a.*.b'] }] }",
    ),
    case(
        "{ allow: [{ names: ['a*.b'] }] }",
        "{ allow: [{ names: ['a*'] }] }",
    ),
    case(
        "{ allow: [{ names: ['a*b.c'] }] }",
        "{ allow: [{ names: ['a*b*.c'] }] }",
    ),
    case(
        "{ allow: [{ names: [a.b] }] }",
        "{ allow: [{ names: [a..b] }] }",
    ),
    case(
        "{ allow: [{ names: [a_b.c] }] }",
        "{ allow: [{ names: ['a b.c'] }] }",
    ),
    case(
        "{ allow: [{ names: [a.b.] }] }",
        "{ allow: [{ names: [.a.b] }] }",
    ),
    case(
        "{ allow: [{ names: [a.b] }] }",
        "{ allow: [{ names: ['https://a.b'] }] }",
    ),
    case(
        "{ allow: [{ names: [a.b] }] }",
        "{ allow: [{ names: ['a.b:443'] }] }",
    ),
    case(
        "{ allow: [{ cidrs: [192.0.2.1] }] }",
        "{ allow: [{ names: [192.0.2.1] }] }",
    ),
    case(
        "{ allow: [{ cidrs: ['2001:db8::1'] }] }",
        "{ allow: [{ names: ['2001:db8::1'] }] }",
    ),
    case(
        "{ allow: [{ names: [a] }] }",
        "{ allow: [{ names: [''] }] }",
    ),
    case(
        "{ allow: [{ names: [a23456789012345678901234567890123456789012345678901234567890123.b] }] }",
        "{ allow: [{ names: [a234567890123456789012345678901234567890123456789012345678901234.b] }] }",
    ),
    case(
        "{ deny: [{ names: [a.b] }] }",
        "{ deny: [{ names: ['a/b'] }] }",
    ),
    // Networks.
    case(
        "{ allow: [{ names: [a.example.com] }] }",
        "{ allow: [{ cidrs: [a.example.com] }] }",
    ),
    case(
        "{ allow: [{ cidrs: [10.0.0.0/32] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/33] }] }",
    ),
    case(
        "{ allow: [{ cidrs: [10.0.0.0/8] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/255.0.0.0] }] }",
    ),
    case(
        "{ allow: [{ cidrs: [10.0.0.255] }] }",
        "{ allow: [{ cidrs: [10.0.0.256] }] }",
    ),
    case(
        "{ allow: [{ cidrs: [10.0.0.0/8] }] }",
        "{ allow: [{ cidrs: [10.0.0/8] }] }",
    ),
    case(
        "{ allow: [{ cidrs: [10.0.0.0/8] }] }",
        "{ allow: [{ cidrs: [010.0.0.0/8] }] }",
    ),
    case(
        "{ allow: [{ cidrs: ['fd00::/128'] }] }",
        "{ allow: [{ cidrs: ['fd00::/129'] }] }",
    ),
    case(
        "{ allow: [{ cidrs: ['fe80::1'] }] }",
        "{ allow: [{ cidrs: ['fe80::1%eth0'] }] }",
    ),
    case(
        "{ deny: [{ cidrs: ['1:2:3:4:5:6:7:8'] }] }",
        "{ deny: [{ cidrs: ['1:2:3:4:5:6:7:8:9'] }] }",
    ),
    // Ports.
    case(
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: ['443/tcp'] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: ['443'] }] }",
    ),
    case(
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: ['443/tcp'] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: [443] }] }",
    ),
    case(
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: ['1/tcp'] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: ['0/tcp'] }] }",
    ),
    case(
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: ['65535/tcp'] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: ['65536/tcp'] }] }",
    ),
    case(
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: ['443/UDP'] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: ['tcp/443'] }] }",
    ),
    case(
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: [icmp] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: ['443/icmp'] }] }",
    ),
    case(
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: [any] }] }",
        "{ allow: [{ cidrs: [10.0.0.0/8], ports: ['*'] }] }",
    ),
    // Presets and service tags.
    case(
        "{ allow: [{ preset: aks/addon/key-vault, with: { vaults: [a.b] } }] }",
        "{ allow: [{ preset: aks/addon/key-vault, with: { vaults: [a.b] }, names: [a.example.com] }] }",
    ),
    case(
        "{ allow: [{ preset: aks/azure-global, with: { location: eastus } }] }",
        "{ allow: [{ with: { location: eastus } }] }",
    ),
    case(
        "{ allow: [{ preset: aks/azure-global, with: { location: eastus } }] }",
        "{ allow: [{ preset: [aks/azure-global] }] }",
    ),
    case(
        "{ allow: [{ preset: aks/azure-global, with: { location: eastus } }] }",
        "{ allow: [{ preset: aks/azure-global, with: [location] }] }",
    ),
    case(
        "{ allow: [{ preset: aks/azure-global, with: { location: eastus } }] }",
        "{ allow: [{ preset: AKS/Azure-Global, with: { location: eastus } }] }",
    ),
    case(
        "{ allow: [{ preset: aks/azure-global, with: { location: eastus } }] }",
        "{ allow: [{ preset: aks/azure-global, with: { location: { name: eastus } } }] }",
    ),
    case(
        "{ allow: [{ preset: aks/azure-global, with: { location: eastus } }] }",
        "{ allow: [{ preset: aks/azure-global, with: { location: {} } }] }",
    ),
    case(
        "{ allow: [{ serviceTags: [Storage.westeurope] }] }",
        "{ allow: [{ serviceTags: Storage.westeurope }] }",
    ),
    case(
        "{ allow: [{ serviceTags: [Storage.westeurope] }] }",
        "{ allow: [{ serviceTags: [''] }] }",
    ),
    case(
        "{ allow: [{ serviceTags: [Storage.westeurope] }] }",
        "{ allow: [{ serviceTags: [] }] }",
    ),
    // Selectors.
    case("{ podSelector: {} }", "{ podSelector: payments }"),
    case(
        "{ podSelector: { matchLabels: { app: payments } } }",
        "{ podSelector: { matchLabels: [app] } }",
    ),
    case(
        "{ podSelector: { matchLabels: { app: x } } }",
        "{ podSelector: { matchLabels: { app: -x } } }",
    ),
    case(
        "{ podSelector: { matchExpressions: [{ key: a.b/c, operator: Exists }] } }",
        "{ podSelector: { matchExpressions: [{ key: a b, operator: Exists }] } }",
    ),
    case(
        "{ podSelector: { matchExpressions: [{ key: a, operator: Exists }] } }",
        "{ podSelector: { matchExpressions: [{ operator: Exists }] } }",
    ),
    case(
        "{ podSelector: { matchExpressions: [{ key: a, operator: Exists }] } }",
        "{ podSelector: { matchExpressions: [{ key: a }] } }",
    ),
    case(
        "{ podSelector: { matchExpressions: [{ key: a, operator: Exists }] } }",
        "{ podSelector: { matchExpressions: [{ key: a, operator: Is }] } }",
    ),
    case(
        "{ podSelector: { matchExpressions: [{ key: a, operator: In, values: [b] }] } }",
        "{ podSelector: { matchExpressions: [{ key: a, operator: In }] } }",
    ),
    case(
        "{ podSelector: { matchExpressions: [{ key: a, operator: NotIn, values: [b] }] } }",
        "{ podSelector: { matchExpressions: [{ key: a, operator: NotIn, values: [] }] } }",
    ),
    case(
        "{ podSelector: { matchExpressions: [{ key: a, operator: DoesNotExist }] } }",
        "{ podSelector: { matchExpressions: [{ key: a, operator: DoesNotExist, values: [b] }] } }",
    ),
    case(
        "{ podSelector: { matchExpressions: [{ key: a, operator: In, values: [b] }] } }",
        "{ podSelector: { matchExpressions: [{ key: a, operator: In, values: ['b/c'] }] } }",
    ),
    cluster("{ subject: node }", "{ subject: nodes }"),
    cluster(
        "{ subject: node, nodeSelector: { matchLabels: { pool: a } } }",
        "{ subject: node, nodeSelector: { matchLabels: { pool: 'a b' } } }",
    ),
    cluster(
        "{ subject: pods, podSelector: {} }",
        "{ subject: node, podSelector: {} }",
    ),
    cluster("{ ceiling: true }", "{ ceiling: upper }"),
    cluster("{ ceiling: true }", "{ subject: node, ceiling: true }"),
    cluster(
        "{ namespaceSelector: {} }",
        "{ subject: node, namespaceSelector: {} }",
    ),
    cluster(
        "{ namespaceSelector: {} }",
        "{ namespaceSelector: { matchExpressions: [{ key: a, operator: In }] } }",
    ),
    cluster(
        "{ deny: [{ names: [a.b] }] }",
        "{ deny: [{ names: [a.b], ports: ['1/tcp'] }] }",
    ),
];

/// Errors that no schema without expressions can detect: the compiler's message is in the status.
pub(crate) const ONLY_COMPILER: &[&str] = &[
    // Comparisons of two values.
    "{ ttl: { min: 2h, max: 1h } }",
    "{ allow: [{ cidrs: [10.0.0.0/8], ports: ['8080-80/tcp'] }] }",
    // Sums.
    "{ ttl: { max: 6d25h } }",
    // Host bits, and IPv4 in IPv6 form.
    "{ allow: [{ cidrs: [10.0.0.1/8] }] }",
    "{ allow: [{ cidrs: ['::ffff:192.0.2.7'] }] }",
    // International names that are none.
    "{ allow: [{ names: ['\u{ad}.example'] }] }",
    // Presets and tags that only the agents' own files have.
    "{ allow: [{ preset: aks/nothing }] }",
    "{ allow: [{ preset: aks/azure-global }] }",
    "{ allow: [{ preset: aks/azure-global, with: { location: eastus, nothing: x } }] }",
    "{ allow: [{ serviceTags: [Nothing] }] }",
    // Keys of mappings.
    "{ podSelector: { matchLabels: { a b: x } } }",
    // Sums over several rules.
    "{ allow: [{ names: [a.b], ports: [1/tcp, 2/tcp, 3/tcp, 4/tcp, 5/tcp] }, { names: [a.b], ports: [1/udp, 2/udp, 3/udp, 4/udp, 5/udp] }] }",
];
