/* The sleep of a supervisor, as C twin of memwarden.supervise.vigil.Vigil: sleep, glance at a few kept-open files,
   write down that nothing moved, sleep again.

   After a sleep of 90 ms the caches are cold, and what a glance costs is the code and the data that it touches: some
   200 us of the interpreter, some 50 of this. The meaning is that of the Python class.

   - One process and one thread: a descriptor of /proc is not followed through a fork here (`_reader` does).
   - Signals are blocked by the caller and taken by sigtimedwait(2), which is also what sleeps. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Numbers of one process or one cgroup; what fills this is compared by its beginning. */
enum { TEXT_SIZE = 512, MOST_FILES = 64, PEOPLE_SIZE = 4096 };
enum { NUMBERS_SIZE = 256 }; /* as in source.py: what fills this is no file of a few numbers */
enum { DUE, MOVED, SIGNALLED };
/* What is written: number of a tick, monotonic seconds, bytes; and their CRC-32, padded with zeros. */
enum { STILL_SIZE = 24, SEAL_SIZE = 8 };

typedef struct {
    int fd;
    ssize_t size;
    char text[TEXT_SIZE];
} Kept;

typedef struct {
    PyObject_HEAD
    PyObject *paths; /* a tuple, the same as of `files` */
    PyObject *gate;
    PyObject *people;
    PyObject *info;
    Kept *files;
    Py_ssize_t count;
    Kept counted;
    Kept gated;
    char *list; /* the text of `people` */
    ssize_t list_size;
    int again;
    Py_ssize_t index;
    Py_ssize_t scale;
    sigset_t signals;
} Vigil;

static int
open_kept(Kept *kept, const char *path)
{
    kept->size = -1;
    kept->fd = open(path, O_RDONLY | O_CLOEXEC);
    return kept->fd;
}

static void
close_kept(Kept *kept)
{
    if (kept->fd >= 0) {
        close(kept->fd);
    }
    kept->fd = -1;
    kept->size = -1;
}

static void
remember(Kept *kept)
{
    kept->size = kept->fd < 0 ? -1 : pread(kept->fd, kept->text, TEXT_SIZE, 0);
}

/* Whether it reads as it did. What cannot be read has moved. */
static int
is_same(const Kept *kept)
{
    char now[TEXT_SIZE];
    ssize_t size = kept->fd < 0 ? -1 : pread(kept->fd, now, TEXT_SIZE, 0);
    return size >= 0 && size == kept->size && memcmp(now, kept->text, (size_t)size) == 0;
}

/* v1 shows one open file the same list until nobody has read it for a second, so it is opened anew. */
static ssize_t
read_people(Vigil *self, char *text)
{
    ssize_t size = -1;
    int fd = open(PyBytes_AS_STRING(self->people), O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        size = pread(fd, text, PEOPLE_SIZE, 0);
        close(fd);
    }
    return size;
}

/* Whether nobody joined: looked up when a pid was given since the last glance, and at the glance after it, for a pid
   is given before its process joins the cgroup. A list that fills the buffer may be longer. */
static int
is_nobody_new(Vigil *self)
{
    char list[PEOPLE_SIZE];
    ssize_t size;
    int is_new;
    if (self->gate == NULL) {
        return 1;
    }
    is_new = !is_same(&self->gated);
    if (!is_new && !self->again) {
        return 1;
    }
    if (is_new) {
        remember(&self->gated);
    }
    self->again = is_new;
    size = read_people(self, list);
    return size >= 0 && size < PEOPLE_SIZE && size == self->list_size && memcmp(list, self->list, (size_t)size) == 0;
}

/* What bytes.split() takes for white space. */
static int
is_space(char c)
{
    return c == ' ' || ('\t' <= c && c <= '\r');
}

/* The number that is counted, as NumberFile reads it; false where there is none, or it is beyond 63 bits. */
static int
read_counted(const Vigil *self, long long *value)
{
    char text[NUMBERS_SIZE];
    ssize_t size = self->counted.fd < 0 ? -1 : pread(self->counted.fd, text, sizeof text, 0), at = 0;
    if (size <= 0 || size == NUMBERS_SIZE) {
        return 0;
    }
    for (Py_ssize_t skip = self->index;; skip--) {
        while (at < size && is_space(text[at])) {
            at++;
        }
        if (skip == 0) {
            break;
        }
        while (at < size && !is_space(text[at])) {
            at++;
        }
    }
    if (at == size) {
        return 0;
    }
    *value = 0;
    for (; at < size && !is_space(text[at]); at++) {
        if (text[at] < '0' || text[at] > '9' || __builtin_mul_overflow(*value, 10, value) ||
            __builtin_add_overflow(*value, text[at] - '0', value)) {
            return 0;
        }
    }
    return !__builtin_mul_overflow(*value, (long long)self->scale, value);
}

static void
put_64(unsigned char *at, uint64_t value)
{
    for (int i = 0; i < 8; i++) {
        at[i] = (unsigned char)(value >> (8 * i));
    }
}

/* As binascii.crc32: a bit at a time is 0.3 us for these 24 bytes, and no table has to be fetched. */
static uint32_t
crc_32(const unsigned char *text, size_t size)
{
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < size; i++) {
        crc ^= text[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
        }
    }
    return ~crc;
}

static void
write_still(unsigned char *at, uint64_t number, double seen_s, uint64_t seen)
{
    unsigned char body[STILL_SIZE + SEAL_SIZE];
    uint64_t bits;
    memcpy(&bits, &seen_s, sizeof bits);
    put_64(body, number);
    put_64(body + 8, bits);
    put_64(body + 16, seen);
    put_64(body + STILL_SIZE, crc_32(body, STILL_SIZE));
    memcpy(at, body, sizeof body);
}

static double
monotonic_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int
is_still(Vigil *self, long long least, long long most, long long *seen)
{
    if (!read_counted(self, seen) || *seen < least || *seen > most) {
        return 0;
    }
    for (Py_ssize_t i = 0; i < self->count; i++) {
        if (!is_same(&self->files[i])) {
            return 0;
        }
    }
    return is_nobody_new(self);
}

static int
keep_info(Vigil *self, const siginfo_t *info)
{
    PyObject *fields = info == NULL ? Py_NewRef(Py_None)
                                    : Py_BuildValue("iiiiiil", info->si_signo, info->si_code, info->si_errno,
                                                    (int)info->si_pid, (int)info->si_uid, info->si_status,
                                                    (long)info->si_band);
    if (fields == NULL) {
        return -1;
    }
    Py_XSETREF(self->info, fields);
    return 0;
}

static PyObject *
vigil_doze(PyObject *op, PyObject *args)
{
    Vigil *self = (Vigil *)op;
    double step_s, until_s, seen_s = 0.0;
    long long least, most, now = 0, seen = 0;
    Py_buffer buffer;
    Py_ssize_t at;
    unsigned long long number;
    struct timespec step;
    siginfo_t info;
    int why = DUE, taken;

    if (!PyArg_ParseTuple(args, "ddLLw*nK:doze", &step_s, &until_s, &least, &most, &buffer, &at, &number)) {
        return NULL;
    }
    if (at < 0 || at > buffer.len - (STILL_SIZE + SEAL_SIZE) || !(step_s >= 0.0 && step_s <= 3600.0)) {
        PyErr_SetString(PyExc_ValueError, "no room in the buffer, or no time to sleep");
        goto failed;
    }
    if (keep_info(self, NULL) < 0) {
        goto failed;
    }
    step.tv_sec = (time_t)step_s;
    step.tv_nsec = (long)((step_s - (double)step.tv_sec) * 1e9);
    for (;;) {
        double now_s;
        Py_BEGIN_ALLOW_THREADS
        taken = sigtimedwait(&self->signals, &info, &step);
        Py_END_ALLOW_THREADS
        if (taken > 0) {
            why = SIGNALLED;
            if (keep_info(self, &info) < 0) {
                goto failed;
            }
            break;
        }
        if (errno != EAGAIN && errno != EINTR) {
            PyErr_SetFromErrno(PyExc_OSError);
            goto failed;
        }
        if (errno == EINTR && PyErr_CheckSignals() < 0) {
            goto failed;
        }
        now_s = monotonic_s();
        if (!is_still(self, least, most, &now)) {
            why = MOVED;
            break;
        }
        if (now_s >= until_s) {
            break;
        }
        write_still((unsigned char *)buffer.buf + at, number, now_s, (uint64_t)now);
        seen_s = now_s;
        seen = now;
    }
    PyBuffer_Release(&buffer);
    return Py_BuildValue("dLi", seen_s, seen, why);
failed:
    PyBuffer_Release(&buffer);
    return NULL;
}

static void
forget_files(Vigil *self)
{
    for (Py_ssize_t i = 0; i < self->count; i++) {
        close_kept(&self->files[i]);
    }
    PyMem_Free(self->files);
    self->files = NULL;
    self->count = 0;
    Py_CLEAR(self->paths);
}

static void
forget_gate(Vigil *self)
{
    close_kept(&self->gated);
    PyMem_Free(self->list);
    self->list = NULL;
    Py_CLEAR(self->gate);
    Py_CLEAR(self->people);
}

static int
open_files(Vigil *self, PyObject *paths)
{
    Py_ssize_t count = PyTuple_GET_SIZE(paths);
    forget_files(self);
    if (count > MOST_FILES) {
        PyErr_Format(PyExc_ValueError, "at most %d files are kept open", (int)MOST_FILES);
        return -1;
    }
    self->files = PyMem_Calloc((size_t)(count ? count : 1), sizeof(Kept));
    if (self->files == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *path = NULL;
        if (!PyUnicode_FSConverter(PyTuple_GET_ITEM(paths, i), &path)) {
            return -1;
        }
        open_kept(&self->files[i], PyBytes_AS_STRING(path));
        self->count = i + 1;
        Py_DECREF(path);
    }
    self->paths = Py_NewRef(paths);
    return 0;
}

static int
open_gate(Vigil *self, PyObject *gate, PyObject *people)
{
    forget_gate(self);
    if (!PyUnicode_FSConverter(gate, &self->gate) || !PyUnicode_FSConverter(people, &self->people)) {
        return -1;
    }
    self->list = PyMem_Malloc(PEOPLE_SIZE);
    if (self->list == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    open_kept(&self->gated, PyBytes_AS_STRING(self->gate));
    return 0;
}

static PyObject *
vigil_heed(PyObject *op, PyObject *args)
{
    Vigil *self = (Vigil *)op;
    PyObject *paths, *gate = Py_None, *people = Py_None;
    if (!PyArg_ParseTuple(args, "O!|OO:heed", &PyTuple_Type, &paths, &gate, &people)) {
        return NULL;
    }
    int same = self->paths == NULL ? 0 : PyObject_RichCompareBool(self->paths, paths, Py_EQ);
    if (same < 0 || (!same && open_files(self, paths) < 0)) {
        return NULL;
    }
    if (gate == Py_None) {
        forget_gate(self);
    }
    else if (self->list == NULL && open_gate(self, gate, people) < 0) {
        forget_gate(self);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < self->count; i++) {
        remember(&self->files[i]);
    }
    if (self->gate != NULL) {
        remember(&self->gated);
        self->again = 1;
        self->list_size = read_people(self, self->list);
    }
    Py_RETURN_NONE;
}

static void
let_go(Vigil *self)
{
    forget_files(self);
    forget_gate(self);
    close_kept(&self->counted);
}

static PyObject *
vigil_close(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    let_go((Vigil *)op);
    Py_RETURN_NONE;
}

static int
fill_signals(Vigil *self, PyObject *signals)
{
    PyObject *each, *iterator = PyObject_GetIter(signals);
    if (iterator == NULL) {
        return -1;
    }
    sigemptyset(&self->signals);
    while ((each = PyIter_Next(iterator)) != NULL) {
        long number = PyLong_AsLong(each);
        Py_DECREF(each);
        if (PyErr_Occurred()) {
            break;
        }
        if (number < 1 || number > SIGRTMAX || sigaddset(&self->signals, (int)number) < 0) {
            PyErr_Format(PyExc_ValueError, "%ld is no signal", number);
            break;
        }
    }
    Py_DECREF(iterator);
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *
vigil_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"signals", "path", "index", "scale", NULL};
    PyObject *signals, *path = NULL;
    Py_ssize_t index = 0, scale = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO&|$nn:Vigil", names, &signals, PyUnicode_FSConverter, &path,
                                     &index, &scale)) {
        return NULL;
    }
    Vigil *self = (Vigil *)PyType_GenericAlloc(type, 0);
    if (self != NULL) {
        self->counted.fd = self->gated.fd = -1;
        self->index = index;
        self->scale = scale;
        if (keep_info(self, NULL) < 0 || fill_signals(self, signals) < 0) {
            Py_CLEAR(self);
        }
        else {
            open_kept(&self->counted, PyBytes_AS_STRING(path));
        }
    }
    Py_DECREF(path);
    return (PyObject *)self;
}

static void
vigil_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    let_go((Vigil *)op);
    Py_CLEAR(((Vigil *)op)->info);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyMethodDef vigil_methods[] = {
    {"heed", vigil_heed, METH_VARARGS, "heed(paths, gate=None, people=None, /)\n--\n\nWhat later glances compare with."},
    {"doze", vigil_doze, METH_VARARGS,
     "doze(step_s, until_s, least, most, buffer, at, number, /)\n--\n\nSleep and glance; when, what, and why it woke."},
    {"close", vigil_close, METH_NOARGS, "Give the descriptors back."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef vigil_members[] = {
    {"info", T_OBJECT_EX, offsetof(Vigil, info), READONLY, "The signal that ended the last sleep, or None."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot vigil_slots[] = {
    {Py_tp_doc, "Vigil(signals, path, *, index=0, scale=1)\n--\n\nSleeps while nothing moves."},
    {Py_tp_new, vigil_new},
    {Py_tp_dealloc, vigil_dealloc},
    {Py_tp_methods, vigil_methods},
    {Py_tp_members, vigil_members},
    {0, NULL},
};

static PyType_Spec vigil_spec = {
    .name = "memwarden._native._vigil.Vigil",
    .basicsize = sizeof(Vigil),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = vigil_slots,
};

static int
vigil_exec(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &vigil_spec, NULL);
    if (type == NULL) {
        return -1;
    }
    int failed = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return failed;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, vigil_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef vigil_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_vigil",
    .m_doc = "C twin of memwarden.supervise.vigil.Vigil.",
    .m_size = 0,
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__vigil(void)
{
    return PyModuleDef_Init(&vigil_module);
}
