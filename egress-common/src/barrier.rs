//! Order between reads or writes of memory that several CPUs share.

/// Nothing that stands before it in the program is read or written after what stands behind it.
///
/// On x86-64 the hardware keeps the order of stores and of loads, so that the compiler alone has to be held. On arm64 it
/// does not: there (feature `arm64`) it is an atomic fetch-and-add, which the kernel's compiler makes `ldaddal`, a full
/// barrier. That instruction exists from 5.12 on; arm64 is supported from 6.1 on.
#[inline(always)]
#[allow(unsafe_code, reason = "an instruction; on the host none")]
pub fn barrier() {
    #[cfg(all(target_arch = "bpf", feature = "arm64"))]
    {
        let mut word = 0_u64;
        // SAFETY: the address is that of a local variable.
        unsafe {
            core::arch::asm!(
                "{1} = atomic_fetch_add((u64 *)({0} + 0), {1})",
                in(reg) &raw mut word,
                inout(reg) 0_u64 => _,
            );
        }
    }
    #[cfg(all(target_arch = "bpf", not(feature = "arm64")))]
    {
        // SAFETY: a register is moved to itself; the compiler assumes that memory changed. (Without any instruction,
        // the line information would have two lines at one place, which the kernel refuses.)
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) 0_u64 => _) };
    }
    #[cfg(not(target_arch = "bpf"))]
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}

/// Hides from the compiler where a number comes from: it cannot make a branch of a computation then, of which the kernel's
/// verifier would go through both sides.
#[inline(always)]
#[must_use]
#[allow(unsafe_code, unused_mut, reason = "an instruction; on the host none")]
pub fn hide(number: u64) -> u64 {
    let mut number = number;
    #[cfg(target_arch = "bpf")]
    // SAFETY: a register is moved to itself.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) number);
    }
    number
}
