//! Programs of two instructions, which show what the hooks alone cost.

use std::{fs::File, path::Path};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType},
};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};

/// Programs in a cgroup; gone when dropped.
#[derive(Debug)]
pub(crate) struct Idle {
    ebpf: Ebpf,
}

impl Idle {
    /// Attaches programs that return `code` (1 passes, 0 denies) to both directions of a cgroup.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(crate) fn attach(cgroup: &Path, code: u8) -> Result<Self> {
        let mut ebpf = Ebpf::load(&object_file(code)?).context("cannot load an empty program")?;
        let cgroup = File::open(cgroup).context("cannot open the cgroup")?;
        for (name, kind) in [
            ("idle_egress", CgroupSkbAttachType::Egress),
            ("idle_ingress", CgroupSkbAttachType::Ingress),
        ] {
            let program: &mut CgroupSkb = ebpf
                .program_mut(name)
                .context("no such program")?
                .try_into()
                .context("another kind of program")?;
            program.load().context("cannot load an empty program")?;
            program
                .attach(&cgroup, kind, CgroupAttachMode::Single)
                .context("cannot attach an empty program")?;
        }
        Ok(Self { ebpf })
    }

    /// One of the two.
    ///
    /// # Errors
    ///
    /// There is no such program.
    pub(crate) fn program(&self, name: &str) -> Result<&CgroupSkb> {
        let program = self.ebpf.program(name).context("no such program")?;
        program.try_into().context("another kind of program")
    }
}

/// An object file as a compiler would write it: `r0 = code; exit`, twice.
fn object_file(code: u8) -> Result<Vec<u8>> {
    let instructions = [0xb7, 0, 0, 0, code, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let mut file = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    for (name, section) in [
        ("idle_egress", "cgroup_skb/egress"),
        ("idle_ingress", "cgroup_skb/ingress"),
    ] {
        let section = file.add_section(Vec::new(), section.into(), SectionKind::Text);
        let value = file.append_section_data(section, &instructions, 8);
        file.add_symbol(Symbol {
            name: name.into(),
            value,
            size: instructions.len() as u64,
            kind: SymbolKind::Text,
            scope: SymbolScope::Dynamic,
            weak: false,
            section: SymbolSection::Section(section),
            flags: SymbolFlags::None,
        });
    }
    let license = file.add_section(Vec::new(), b"license".into(), SectionKind::Data);
    file.append_section_data(license, b"Dual MIT/GPL\0", 1);
    file.write().context("cannot write an object file")
}
