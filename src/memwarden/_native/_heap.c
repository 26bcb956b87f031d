/* The C library's heap, asked without leaving C: how much of it is free, and giving that back.

   glibc only (2.33 for mallinfo2, whose figures are not cut to 32 bits); elsewhere the module is not built. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <unistd.h>

#if !defined(__GLIBC__) || !__GLIBC_PREREQ(2, 33)
#error "mallinfo2 came with glibc 2.33"
#endif

PyDoc_STRVAR(free_doc, "free_bytes()\n--\n\nBytes of the heap that are free and may still be resident.");

static PyObject *
free_bytes(PyObject *module, PyObject *nothing)
{
    struct mallinfo2 info = mallinfo2();
    return PyLong_FromSize_t(info.fordblks);
}

PyDoc_STRVAR(resident_doc, "resident_bytes()\n--\n\nWhat of this process is in memory; 0 where it cannot be read.");

static PyObject *
resident_bytes(PyObject *module, PyObject *nothing)
{
    /* Opened anew: 3 us, and right after a fork. */
    char text[128];
    unsigned long long size = 0, resident = 0;
    int file = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        ssize_t length = read(file, text, sizeof(text) - 1);
        close(file);
        text[length > 0 ? length : 0] = '\0';
        if (sscanf(text, "%llu %llu", &size, &resident) != 2)
            resident = 0;
    }
    return PyLong_FromUnsignedLongLong(resident * (unsigned long long)sysconf(_SC_PAGESIZE));
}

PyDoc_STRVAR(trim_doc, "trim()\n--\n\nReturn them to the system. Other threads run meanwhile.");

static PyObject *
trim(PyObject *module, PyObject *nothing)
{
    Py_BEGIN_ALLOW_THREADS
    malloc_trim(0);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"free_bytes", free_bytes, METH_NOARGS, free_doc},
    {"resident_bytes", resident_bytes, METH_NOARGS, resident_doc},
    {"trim", trim, METH_NOARGS, trim_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "memwarden._native._heap",
    .m_doc = "The C library's heap.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__heap(void)
{
    return PyModuleDef_Init(&definition);
}
