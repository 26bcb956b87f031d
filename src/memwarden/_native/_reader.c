/* The two things that a guarded process does most often, as C twins of Python classes.

   NumberFile: one whole number of a kept-open file of /proc or /sys (memwarden.sense.source.NumberFile).
   Deadline: `check()` that looks at the clock and nearly always returns (memwarden.act.breaker.Deadline).

   NumberFile has the same meaning as the Python class, at 0.55 us a reading instead of 1.1; the rest of the cost is
   the kernel's.

   - The GIL is kept during the pread: giving it up and taking it again cost more (659 ns) than the whole reading
     does with it (566 ns). It is kept during a re-open too, which makes a reading atomic to the other threads.
   - A kept descriptor of /proc/self goes on reading the parent after a fork. A handler in the child moves a counter
     that each reading compares with its own: a load instead of a getpid system call, and right for forks made in C,
     which run no Python hook. A raw clone system call runs no handler either; nothing that uses libc survives one.
   - A descriptor is closed only while it is still the file that we opened: after a daemon closed every descriptor,
     the number may belong to somebody's socket.
   - Not for free-threaded Python: there a reading would need a lock, and a module without that promise would switch
     the GIL on in somebody's production process. The Python twin serves there. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifdef Py_GIL_DISABLED
#error "free-threaded Python uses the pure reader"
#endif

/* As in the Python twin: statm has 7 numbers of 20 digits at most; what fills this may be cut. */
enum { TEXT_SIZE = 256 };

static atomic_uint fork_generation;

static void
count_fork(void)
{
    atomic_fetch_add_explicit(&fork_generation, 1, memory_order_relaxed);
}

static int fork_handler_error;

static void
install_fork_handler(void)
{
    fork_handler_error = pthread_atfork(NULL, NULL, count_fork);
}

static unsigned
generation_now(void)
{
    return atomic_load_explicit(&fork_generation, memory_order_relaxed);
}

typedef struct {
    PyObject_HEAD
    PyObject *path;
    Py_ssize_t index;
    Py_ssize_t scale;
    int fd;
    unsigned generation;
    dev_t device;
    ino_t inode;
} NumberFile;

static void
let_go(NumberFile *self)
{
    struct stat now;
    int fd = self->fd;
    self->fd = -1;
    if (fd >= 0 && fstat(fd, &now) == 0 && now.st_dev == self->device && now.st_ino == self->inode) {
        close(fd);
    }
}

/* The path as the kernel wants it; NULL with no exception where it cannot name a file. */
static PyObject *
encoded_path(NumberFile *self)
{
    PyObject *bytes = PyUnicode_EncodeFSDefault(self->path);
    if (bytes == NULL) {
        if (PyErr_ExceptionMatches(PyExc_ValueError)) {
            PyErr_Clear();
        }
        return NULL;
    }
    if (strlen(PyBytes_AS_STRING(bytes)) != (size_t)PyBytes_GET_SIZE(bytes)) {
        Py_CLEAR(bytes);
    }
    return bytes;
}

/* 0, or -1: with an exception only where memory ran out. */
static int
open_again(NumberFile *self)
{
    struct stat now;
    let_go(self);
    PyObject *bytes = encoded_path(self);
    if (bytes == NULL) {
        return -1;
    }
    int fd = open(PyBytes_AS_STRING(bytes), O_RDONLY | O_CLOEXEC);
    Py_DECREF(bytes);
    if (fd < 0) {
        return -1;
    }
    if (fstat(fd, &now) != 0) {
        close(fd);
        return -1;
    }
    self->fd = fd;
    self->generation = generation_now();
    self->device = now.st_dev;
    self->inode = now.st_ino;
    return 0;
}

/* The bytes read, or -1. One re-opening: ENODEV says that the cgroup was removed, ESRCH that the process ended,
   EBADF that somebody closed our descriptor. The file may be back under its name. */
static Py_ssize_t
read_text(NumberFile *self, char *text)
{
    if (self->fd >= 0 && self->generation == generation_now()) {
        Py_ssize_t size = pread(self->fd, text, TEXT_SIZE, 0);
        if (size >= 0) {
            return size;
        }
    }
    return open_again(self) < 0 ? -1 : pread(self->fd, text, TEXT_SIZE, 0);
}

/* What bytes.split() takes for white space. */
static int
is_space(char c)
{
    return c == ' ' || ('\t' <= c && c <= '\r');
}

/* The index-th word, not terminated; its length, or 0 where there are fewer. */
static size_t
find_word(const char **at, const char *end, Py_ssize_t index)
{
    const char *p = *at;
    for (;; index--) {
        while (p < end && is_space(*p)) {
            p++;
        }
        const char *start = p;
        while (p < end && !is_space(*p)) {
            p++;
        }
        if (index == 0 || p == start) {
            *at = start;
            return (size_t)(p - start);
        }
    }
}

/* More than 64 bits: nothing that a kernel says about memory, so the cost does not matter. */
static PyObject *
big_product(const char *word, size_t length, Py_ssize_t scale)
{
    char digits[TEXT_SIZE];
    memcpy(digits, word, length);
    digits[length] = '\0';
    PyObject *number = PyLong_FromString(digits, NULL, 10);
    PyObject *factor = PyLong_FromSsize_t(scale);
    PyObject *product = number != NULL && factor != NULL ? PyNumber_Multiply(number, factor) : NULL;
    Py_XDECREF(number);
    Py_XDECREF(factor);
    return product;
}

static PyObject *
parse_number(NumberFile *self, const char *text, size_t size)
{
    unsigned long long total = 0;
    int overflow = 0;
    const char *word = text;
    size_t length = find_word(&word, text + size, self->index);

    if (length == 0) {
        Py_RETURN_NONE;
    }
    for (size_t i = 0; i < length; i++) {
        unsigned digit = (unsigned char)word[i] - (unsigned)'0';
        if (digit > 9) {
            Py_RETURN_NONE;
        }
        overflow |= __builtin_mul_overflow(total, 10ULL, &total);
        overflow |= __builtin_add_overflow(total, digit, &total);
    }
    overflow |= __builtin_mul_overflow(total, (unsigned long long)self->scale, &total);
    return overflow ? big_product(word, length, self->scale) : PyLong_FromUnsignedLongLong(total);
}

static PyObject *
number_file_value(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    NumberFile *self = (NumberFile *)op;
    char text[TEXT_SIZE];
    Py_ssize_t size = read_text(self, text);
    if (size < 0 && PyErr_Occurred()) {
        return NULL;
    }
    if (size < 0 || size == TEXT_SIZE) {
        Py_RETURN_NONE;
    }
    return parse_number(self, text, (size_t)size);
}

static PyObject *
number_file_close(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    let_go((NumberFile *)op);
    Py_RETURN_NONE;
}

static PyObject *
number_file_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", "index", "scale", NULL};
    PyObject *path;
    Py_ssize_t index = 0;
    Py_ssize_t scale = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "U|$nn:NumberFile", names, &path, &index, &scale)) {
        return NULL;
    }
    if (index < 0 || scale < 1) {
        PyErr_SetString(PyExc_ValueError, "index must be 0 or more, and scale 1 or more");
        return NULL;
    }
    NumberFile *self = (NumberFile *)PyType_GenericAlloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->path = Py_NewRef(path);
    self->index = index;
    self->scale = scale;
    self->fd = -1;
    return (PyObject *)self;
}

static void
number_file_dealloc(PyObject *op)
{
    NumberFile *self = (NumberFile *)op;
    PyTypeObject *type = Py_TYPE(op);
    let_go(self);
    Py_XDECREF(self->path);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyMethodDef number_file_methods[] = {
    {"value", number_file_value, METH_NOARGS,
     "The number now, or None for anything that is not a whole number there."},
    {"close", number_file_close, METH_NOARGS,
     "Give the descriptor back; a later reading opens the file again."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef number_file_members[] = {
    {"path", T_OBJECT_EX, offsetof(NumberFile, path), READONLY, NULL},
    {"index", T_PYSSIZET, offsetof(NumberFile, index), READONLY, NULL},
    {"scale", T_PYSSIZET, offsetof(NumberFile, scale), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot number_file_slots[] = {
    {Py_tp_doc, "NumberFile(path, *, index=0, scale=1)\n--\n\n"
                "The index-th whole number of a kept-open file, times scale; None where it cannot be read."},
    {Py_tp_new, number_file_new},
    {Py_tp_dealloc, number_file_dealloc},
    {Py_tp_methods, number_file_methods},
    {Py_tp_members, number_file_members},
    {0, NULL},
};

static PyType_Spec number_file_spec = {
    .name = "memwarden._native._reader.NumberFile",
    .basicsize = sizeof(NumberFile),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = number_file_slots,
};

/* The base of a class that has `_check_slowly()`. No tp_new and no tp_dealloc: those of object serve, and Python
   classes below it bring their dictionary and their part in garbage collection along. */
typedef struct {
    PyObject_HEAD
    double fast_until_s;
} Deadline;

static PyObject *
deadline_check(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    struct timespec now; /* the clock of time.monotonic() */
    if (clock_gettime(CLOCK_MONOTONIC, &now) == 0 &&
        (double)now.tv_sec + 1e-9 * (double)now.tv_nsec < ((Deadline *)op)->fast_until_s) {
        Py_RETURN_NONE;
    }
    return PyObject_CallMethod(op, "_check_slowly", NULL);
}

static PyMethodDef deadline_methods[] = {
    {"check", deadline_check, METH_NOARGS,
     "Raise MemoryPressureError where there is no room. Nearly always one look at the clock.\n\n"
     "Relieves before it refuses, for at most half a second; on an event loop it does not wait for that:\n"
     "`check_async` does."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef deadline_members[] = {
    {"_fast_until_s", T_DOUBLE, offsetof(Deadline, fast_until_s), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot deadline_slots[] = {
    {Py_tp_doc, "Something to be checked, and until when (monotonic seconds) it is known to be well."},
    {Py_tp_methods, deadline_methods},
    {Py_tp_members, deadline_members},
    {0, NULL},
};

static PyType_Spec deadline_spec = {
    .name = "memwarden._native._reader.Deadline",
    .basicsize = sizeof(Deadline),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = deadline_slots,
};

static int
add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type == NULL) {
        return -1;
    }
    int failed = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return failed;
}

static int
reader_exec(PyObject *module)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT; /* one process, however many interpreters */
    if (pthread_once(&once, install_fork_handler) != 0 || fork_handler_error != 0) {
        PyErr_SetString(PyExc_ImportError, "no fork handler could be installed: the pure reader is used");
        return -1;
    }
    return add_type(module, &number_file_spec) < 0 || add_type(module, &deadline_spec) < 0 ? -1 : 0;
}

static PyModuleDef_Slot reader_slots[] = {
    {Py_mod_exec, reader_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef reader_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_reader",
    .m_doc = "C twins: NumberFile of memwarden.sense.source, Deadline of memwarden.act.breaker.",
    .m_size = 0,
    .m_slots = reader_slots,
};

PyMODINIT_FUNC
PyInit__reader(void)
{
    return PyModuleDef_Init(&reader_module);
}
