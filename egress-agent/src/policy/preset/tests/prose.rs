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
