//! What the documents say outside of their tables.

pub(super) const AKS: &str =
    "Outbound network and FQDN rules for Azure Kubernetes Service (AKS) clusters";
pub(super) const ISOLATED: &str =
    "Create a network isolated Azure Kubernetes Service (AKS) cluster";
pub(super) const MACHINE_LEARNING: &str =
    "Configure inbound and outbound network traffic (Azure Machine Learning)";

/// Preset, document, words of it, and the destinations and ports that follow from them.
type Words = (
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

/// What the documents say in prose.
pub(super) const PROSE: &[Words] = &[
    (
        "aks/azure-global",
        AKS,
        "md-*.blob.storage.azure.net",
        &[("name md-*.blob.storage.azure.net", "443/tcp")],
    ),
    (
        "aks/azure-global",
        AKS,
        "umsa*.blob.core.windows.net",
        &[("name umsa*.blob.core.windows.net", "443/tcp")],
    ),
    (
        "aks/addon/key-vault",
        AKS,
        "to talk to Azure KeyVault server",
        &[("names <vaults>", "443/tcp")],
    ),
    (
        "aks/addon/istio",
        AKS,
        "Azure Key Vault provider for Secrets Store CSI Driver is required for these features",
        &[("include aks/addon/key-vault", "")],
    ),
    (
        "aks/addon/app-routing",
        AKS,
        "with certificates stored in Azure Key Vault",
        &[("include aks/addon/key-vault", "")],
    ),
    (
        "aks/network-isolated",
        ISOLATED,
        "`{REGISTRY_NAME}.azurecr.io`",
        &[("name <registry>.azurecr.io", "443/tcp")],
    ),
    (
        "aks/network-isolated",
        ISOLATED,
        "`{REGISTRY_NAME}.{REGISTRY_LOCATION}.data.azurecr.io`",
        &[("name <registry>.<region>.data.azurecr.io", "443/tcp")],
    ),
    (
        "aks/network-isolated",
        ISOLATED,
        "private access to API server",
        &[("cidrs <apiServer>", "443/tcp")],
    ),
    (
        "aks/network-isolated",
        AKS,
        "`CustomDNSIP:53`",
        &[("cidrs <customDns>", "53/udp")],
    ),
    (
        "azureml/python-packages",
        MACHINE_LEARNING,
        "you must also allow *.pythonhosted.org",
        &[("name *.pythonhosted.org", "443/tcp")],
    ),
    (
        "azureml/training",
        MACHINE_LEARNING,
        "Docker images maintained by Azure Machine Learning",
        &[("include azureml/docker-images", "")],
    ),
    (
        "azureml/rstudio",
        MACHINE_LEARNING,
        "allow outbound access to the sites to pull the Docker image from",
        &[("names <imageHosts>", "443/tcp")],
    ),
    (
        "azureml/r-packages",
        MACHINE_LEARNING,
        "allow outbound traffic to cloud.r-project.org",
        &[("name cloud.r-project.org", "443/tcp")],
    ),
    (
        "azureml/compute-public-ip",
        MACHINE_LEARNING,
        "Scenario: Using compute cluster or compute instance with a public IP",
        &[("include azureml/basic", "")],
    ),
    (
        "azureml/compute-no-public-ip",
        MACHINE_LEARNING,
        "doesn't require this inbound communication",
        &[("include azureml/basic", "")],
    ),
    (
        "azureml/storage",
        MACHINE_LEARNING,
        "outbound access to Storage.<region> on port 445",
        &[("tag Storage.<region>", "445/tcp")],
    ),
    (
        "azureml/hbi",
        MACHINE_LEARNING,
        "outbound access to Keyvault.<region>",
        &[("tag AzureKeyVault.<region>", "443/tcp")],
    ),
    (
        "azureml/vscode",
        MACHINE_LEARNING,
        "retrieve websocket server bits",
        &[("names <websocketHosts>", "443/tcp")],
    ),
    (
        "azureml/vscode",
        MACHINE_LEARNING,
        "network traffic to ports 8704 to 8710",
        &[("cidrs <computeInstances>", "8704-8710/tcp")],
    ),
    (
        "azureml/kubernetes-compute",
        MACHINE_LEARNING,
        "https://<region>.api.azureml.ms/",
        &[("name <region>.api.azureml.ms", "443/tcp")],
    ),
    (
        "azureml/kubernetes-compute",
        MACHINE_LEARNING,
        "Replace <your ACR name> with the name of the Azure Container Registry",
        &[
            ("name <registry>.azurecr.io", "443/tcp"),
            ("name <registry>.<region>.data.azurecr.io", "443/tcp"),
        ],
    ),
    (
        "azureml/kubernetes-compute",
        MACHINE_LEARNING,
        "Replace <your storage account> with the storage account name",
        &[("names <storage>", "443/tcp")],
    ),
    (
        "azureml/kubernetes-compute",
        MACHINE_LEARNING,
        "Replace <your workspace workspace ID> with your workspace ID",
        &[("names <workspace>", "443/tcp")],
    ),
    (
        "azureml/kubernetes-compute",
        MACHINE_LEARNING,
        "deployed model PODs on 5001 port",
        &[("cidrs <clusterNetworks>", "5001/tcp")],
    ),
    (
        "azureml/kubernetes-compute",
        MACHINE_LEARNING,
        "11001, 12001, 12101, 12201, 20000, 8000, 8001, 9001 ports",
        &[
            ("cidrs <clusterNetworks>", "11001/tcp"),
            ("cidrs <clusterNetworks>", "12001/tcp"),
            ("cidrs <clusterNetworks>", "12101/tcp"),
            ("cidrs <clusterNetworks>", "12201/tcp"),
            ("cidrs <clusterNetworks>", "20000/tcp"),
            ("cidrs <clusterNetworks>", "8000-8001/tcp"),
            ("cidrs <clusterNetworks>", "9001/tcp"),
        ],
    ),
    (
        "azureml/kubernetes-compute",
        MACHINE_LEARNING,
        "amlarc-identity-proxy-xxx PODs on 9999 port",
        &[("cidrs <clusterNetworks>", "9999/tcp")],
    ),
    (
        "azureml/kubernetes-compute",
        MACHINE_LEARNING,
        "Microsoft Container Registry is always needed regardless of the scenario",
        &[("include azureml/docker-images", "")],
    ),
    (
        "azureml/kubernetes-compute",
        MACHINE_LEARNING,
        "Required to download the necessary security patches",
        &[("include aks/addon/optional-updates", "")],
    ),
];

/// Names in the documents that are no destinations.
pub(super) const NO_DESTINATIONS: &[(&str, &str)] = &[
    (
        "name kubernetes.azure.com",
        "the beginning of an annotation",
    ),
    ("name privatelink.azurecr.io", "a private DNS zone"),
];

/// Documents that are not among the seeds: newer editions, and pages about nodes.
pub(super) const LATER_DOCUMENTS: &[&str] = &[
    "What is IP address 168.63.129.16? (Azure virtual network)",
    "Azure Instance Metadata Service for virtual machines",
    "Deploy private clusters with limited internet access (Amazon EKS)",
    "Work with the instance metadata service (Amazon EC2)",
    "Amazon Time Sync Service (Amazon EC2)",
    "Automatically created firewall rules (Google Kubernetes Engine)",
    "About VM metadata (Compute Engine)",
];

/// Preset, edition, destinations and ports.
type Later = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

/// What the presets have of them: preset, edition or time of reading, which stands in each entry's note, destinations and ports.
pub(super) const LATER: &[Later] = &[
    (
        "aks/addon/defender",
        "2026-06-18",
        &[("name *.cloud.defender.microsoft.com", "443/tcp")],
    ),
    (
        "azureml/python-packages",
        "2026-11",
        &[("name files.pythonhosted.org", "443/tcp")],
    ),
    (
        "azureml/kubernetes-compute",
        "2026-03-19",
        &[
            ("name *.kusto.windows.net", "443/tcp"),
            ("name *.table.core.windows.net", "443/tcp"),
            ("name *.queue.core.windows.net", "443/tcp"),
            ("name <region>.experiments.azureml.net", "443/tcp"),
            ("name *.workspace.<region>.api.azureml.ms", "443/tcp"),
            ("name pypi.org", "443/tcp"),
            ("name archive.ubuntu.com", "80/tcp"),
            ("name security.ubuntu.com", "80/tcp"),
            ("name ppa.launchpad.net", "80/tcp"),
        ],
    ),
    (
        "azureml/kubernetes-compute",
        "2026-11",
        &[("name files.pythonhosted.org", "443/tcp")],
    ),
    (
        "aks/node",
        "2019-05-15",
        &[
            ("cidrs 168.63.129.16/32", "80/tcp"),
            ("cidrs 168.63.129.16/32", "32526/tcp"),
        ],
    ),
    (
        "aks/node",
        "2026-11",
        &[("cidrs 169.254.169.254/32", "80/tcp")],
    ),
    (
        "eks/node",
        "2026-11",
        &[
            ("cidrs 169.254.169.254/32", "80/tcp"),
            ("cidrs fd00:ec2::254/128", "80/tcp"),
            ("cidrs 169.254.169.123/32", "123/udp"),
            ("cidrs fd00:ec2::123/128", "123/udp"),
            ("name *.<region>.eks.amazonaws.com", "443/tcp"),
            ("name eks.<region>.amazonaws.com", "443/tcp"),
            ("name eks-auth.<region>.api.aws", "443/tcp"),
            ("name ec2.<region>.amazonaws.com", "443/tcp"),
            ("name api.ecr.<region>.amazonaws.com", "443/tcp"),
            ("name *.dkr.ecr.<region>.amazonaws.com", "443/tcp"),
            (
                "name prod-<region>-starport-layer-bucket.s3.<region>.amazonaws.com",
                "443/tcp",
            ),
            ("name sts.<region>.amazonaws.com", "443/tcp"),
            (
                "name elasticloadbalancing.<region>.amazonaws.com",
                "443/tcp",
            ),
            ("name autoscaling.<region>.amazonaws.com", "443/tcp"),
            ("name logs.<region>.amazonaws.com", "443/tcp"),
            ("name ssm.<region>.amazonaws.com", "443/tcp"),
            ("name ssmmessages.<region>.amazonaws.com", "443/tcp"),
            ("name ec2messages.<region>.amazonaws.com", "443/tcp"),
        ],
    ),
    (
        "gke/node",
        "2026-11",
        &[
            ("cidrs 169.254.169.254/32", "80/tcp"),
            ("cidrs fd20:ce::254/128", "80/tcp"),
            ("cidrs 169.254.169.254/32", "123/udp"),
            ("name container.googleapis.com", "443/tcp"),
            ("name storage.googleapis.com", "443/tcp"),
            ("name logging.googleapis.com", "443/tcp"),
            ("name monitoring.googleapis.com", "443/tcp"),
            ("name oauth2.googleapis.com", "443/tcp"),
            ("name iamcredentials.googleapis.com", "443/tcp"),
            ("name gcr.io", "443/tcp"),
            ("name *.gcr.io", "443/tcp"),
            ("names <artifactRegistry>", "443/tcp"),
        ],
    ),
];
