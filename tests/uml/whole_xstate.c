/* Lets user-mode Linux boot on a processor whose extended state is larger than it knows (AMX: 11 KB).
 *
 * It gives a process the first 2.7 KB of its registers back, and the host's kernel takes the whole state or EFAULT
 * (arch/x86/kernel/fpu/regset.c, xstateregs_set): the guest panics before its first program with "ptrace set fp regs
 * failed, errno = 14". So what is missing is taken from the process as it is; no guest uses AMX. To be preloaded.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

static long (*real)(int, pid_t, void *, void *);
/* Not on the stack: that of a guest's kernel has two pages. Its kernel is one thread. */
static char whole[1 << 16];

__attribute__((constructor)) static void find(void) { real = dlsym(RTLD_NEXT, "ptrace"); }

long ptrace(enum __ptrace_request request, ...)
{
    va_list words;
    va_start(words, request);
    pid_t pid = va_arg(words, pid_t);
    void *address = va_arg(words, void *), *data = va_arg(words, void *);
    va_end(words);
    if ((int)request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE) {
        struct iovec *given = data, all = {whole, sizeof whole};
        if (real(PTRACE_GETREGSET, pid, address, &all) == 0 && all.iov_len > given->iov_len) {
            memcpy(whole, given->iov_base, given->iov_len);
            return real(PTRACE_SETREGSET, pid, address, &all);
        }
    }
    return real(request, pid, address, data);
}
