/*
 * Loaded into User-mode Linux ahead of the C library, so that its 6.1 also starts on a processor that has more registers
 * than it knows of. It keeps 2696 bytes of extended state per thread, up to AVX-512 and the protection keys. A host
 * with AMX has 11008, and its kernel takes all of them or none (PTRACE_SETREGSET, xstateregs_set in the kernel's
 * arch/x86/kernel/fpu/regset.c); a guest that is refused takes its init for dead. So what the guest knows is
 * followed by zeros here, for tiles that nothing in it has permission to use.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

static long (*real)(enum __ptrace_request, ...);
static _Alignas(64) char whole[1 << 16]; /* more than any processor has */
static size_t whole_bytes;

long ptrace(enum __ptrace_request request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    pid_t thread = va_arg(arguments, pid_t);
    void *address = va_arg(arguments, void *), *data = va_arg(arguments, void *);
    va_end(arguments);
    if (!real)
        real = (long (*)(enum __ptrace_request, ...))dlsym(RTLD_NEXT, "ptrace");
    if (request != PTRACE_SETREGSET || (unsigned long)address != NT_X86_XSTATE)
        return real(request, thread, address, data);

    const struct iovec *known = data;
    if (!whole_bytes) {
        struct iovec host = {whole, sizeof whole};
        if (real(PTRACE_GETREGSET, thread, address, &host) < 0)
            return -1;
        whole_bytes = host.iov_len;
    }
    if (known->iov_len >= whole_bytes)
        return real(request, thread, address, data);
    memcpy(whole, known->iov_base, known->iov_len);
    memset(whole + known->iov_len, 0, whole_bytes - known->iov_len);
    struct iovec all = {whole, whole_bytes};
    return real(request, thread, address, &all);
}
