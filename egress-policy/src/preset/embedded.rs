//! The presets in the binary. A test compares the list with the folder.

/// A preset's name and text.
macro_rules! embedded {
    ($name:literal) => {
        (
            $name,
            include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/presets/",
                $name,
                ".yaml"
            )),
        )
    };
}

/// Names and texts.
pub(super) const EMBEDDED: &[(&str, &str)] = &[
    embedded!("aks/addon/app-routing"),
    embedded!("aks/addon/azure-monitor"),
    embedded!("aks/addon/azure-policy"),
    embedded!("aks/addon/cluster-extensions"),
    embedded!("aks/addon/cost-analysis"),
    embedded!("aks/addon/defender"),
    embedded!("aks/addon/gpu"),
    embedded!("aks/addon/istio"),
    embedded!("aks/addon/key-vault"),
    embedded!("aks/addon/optional-updates"),
    embedded!("aks/addon/windows"),
    embedded!("aks/addon/workload-identity"),
    embedded!("aks/azure-global"),
    embedded!("aks/china-21vianet"),
    embedded!("aks/network-isolated"),
    embedded!("aks/node"),
    embedded!("aks/us-government"),
    embedded!("azureml/basic"),
    embedded!("azureml/compute-no-public-ip"),
    embedded!("azureml/compute-public-ip"),
    embedded!("azureml/docker-images"),
    embedded!("azureml/hbi"),
    embedded!("azureml/kubernetes-compute"),
    embedded!("azureml/python-packages"),
    embedded!("azureml/r-packages"),
    embedded!("azureml/rstudio"),
    embedded!("azureml/storage"),
    embedded!("azureml/training"),
    embedded!("azureml/vscode"),
    embedded!("eks/node"),
    embedded!("gke/node"),
];
