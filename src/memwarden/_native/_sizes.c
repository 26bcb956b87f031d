/* Sums of sys.getsizeof over flat values: the C twin of the loops in memwarden.flow.sizing, with the same meaning.

   A row of four values takes 0.05 us here and 0.5 us there; SQLAlchemy makes such a row in 0.6.

   - What is not flat (a container, any object that may refer to others) is not looked into: the answer is -1, and the
     Python twin goes through the values one by one.
   - The sizes of None, bool, int, float and the heads of str and bytes are taken from sys.getsizeof once, at import, so
     that they are this interpreter's. Large ints, strings in an old form and types that the caller calls flat
     (datetime, Decimal) are asked one by one.
   - Not for free-threaded Python, as the reader beside it. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifdef Py_GIL_DISABLED
#error "free-threaded Python uses the pure sums"
#endif

static PyObject *getsizeof_function;
static PyObject *data_name;
static Py_ssize_t none_size, true_size, false_size, float_size, zero_size, one_digit_size, two_digit_size, bytes_size;

/* Two digits of 30 bits each; every build with 64-bit pointers has them. */
#define ONE_DIGIT (1L << 30)
#define TWO_DIGITS (1L << 60)

static Py_ssize_t
ask(PyObject *value)
{
    PyObject *answer = PyObject_CallOneArg(getsizeof_function, value);
    if (answer == NULL)
        return -2;
    Py_ssize_t size = PyLong_AsSsize_t(answer);
    Py_DECREF(answer);
    return size < 0 ? -2 : size;
}

static Py_ssize_t
size_of_text(PyObject *value)
{
    if (PyUnicode_IS_COMPACT_ASCII(value))
        return (Py_ssize_t)sizeof(PyASCIIObject) + PyUnicode_GET_LENGTH(value) + 1;
    if (PyUnicode_IS_COMPACT(value)) {
        PyCompactUnicodeObject *compact = (PyCompactUnicodeObject *)value;
        Py_ssize_t size = (Py_ssize_t)sizeof(PyCompactUnicodeObject);
        size += (PyUnicode_GET_LENGTH(value) + 1) * (Py_ssize_t)PyUnicode_KIND(value);
        if (compact->utf8 != NULL && (void *)compact->utf8 != PyUnicode_DATA(value))
            size += compact->utf8_length + 1;
        return size;
    }
    return ask(value);
}

/* The size; -1 where it is not flat, -2 with an exception set. */
static Py_ssize_t
size_of_flat(PyObject *value, PyObject *flat)
{
    PyTypeObject *type = Py_TYPE(value);
    if (type == &PyUnicode_Type)
        return size_of_text(value);
    if (type == &PyLong_Type) {
        int overflow;
        long number = PyLong_AsLongAndOverflow(value, &overflow);
        if (overflow || number >= TWO_DIGITS || number <= -TWO_DIGITS)
            return ask(value);
        if (number == 0)
            return zero_size;
        return number < ONE_DIGIT && number > -ONE_DIGIT ? one_digit_size : two_digit_size;
    }
    if (value == Py_None)
        return none_size;
    if (type == &PyFloat_Type)
        return float_size;
    if (type == &PyBytes_Type)
        return bytes_size + PyBytes_GET_SIZE(value);
    if (type == &PyBool_Type)
        return value == Py_True ? true_size : false_size;
    int known = PySet_Contains(flat, (PyObject *)type);
    if (known < 0)
        return -2;
    return known ? ask(value) : -1;
}

static Py_ssize_t
sum_of(PyObject *values, PyObject *flat)
{
    PyObject *fast = PySequence_Fast(values, "values must be iterable");
    if (fast == NULL)
        return -2;
    Py_ssize_t total = 0;
    /* The length is asked anew each time: getsizeof may run anybody's code. */
    for (Py_ssize_t at = 0; at < PySequence_Fast_GET_SIZE(fast); at++) {
        PyObject *value = Py_NewRef(PySequence_Fast_GET_ITEM(fast, at));
        Py_ssize_t size = size_of_flat(value, flat);
        Py_DECREF(value);
        if (size < 0) {
            total = size;
            break;
        }
        total += size;
    }
    Py_DECREF(fast);
    return total;
}

static PyObject *
answer(Py_ssize_t size)
{
    return size == -2 ? NULL : PyLong_FromSsize_t(size);
}

PyDoc_STRVAR(flat_doc,
"flat_sum(values, flat, /)\n--\n\n"
"Sum of getsizeof over the values; -1 where one of them is of a type that is not in the set of flat ones.");

static PyObject *
flat_sum(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyAnySet_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "flat_sum takes values and a set of types");
        return NULL;
    }
    return answer(sum_of(arguments[0], arguments[1]));
}

/* What is in a row: the row itself where it is a tuple, the tuple that SQLAlchemy's Row keeps, else what it iterates. */
static PyObject *
cells_of(PyObject *row)
{
    if (PyTuple_CheckExact(row))
        return Py_NewRef(row);
    /* Not PyObject_GetAttr: SQLAlchemy's Row has a look-up of its own, for columns, at 270 ns. */
    PyObject *data = PyObject_GenericGetAttr(row, data_name);
    if (data != NULL && PyTuple_CheckExact(data))
        return data;
    Py_XDECREF(data);
    PyErr_Clear();
    return PySequence_Tuple(row);
}

PyDoc_STRVAR(table_doc,
"table_sum(rows, flat, /)\n--\n\n"
"Sum of getsizeof over all cells of rows of one type and one length; -1 where they are not, or a cell is not flat.");

static PyObject *
table_sum(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyList_CheckExact(arguments[0]) || !PyAnySet_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "table_sum takes a list of rows and a set of types");
        return NULL;
    }
    PyObject *rows = arguments[0];
    PyTypeObject *type = NULL;
    Py_ssize_t total = 0, width = 0;
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(rows); at++) {
        PyObject *row = Py_NewRef(PyList_GET_ITEM(rows, at));
        PyObject *cells = cells_of(row);
        PyTypeObject *this_type = Py_TYPE(row);
        Py_DECREF(row);
        if (cells == NULL)
            return NULL;
        if (type == NULL) {
            type = this_type;
            width = PyTuple_GET_SIZE(cells);
        }
        Py_ssize_t size = this_type == type && PyTuple_GET_SIZE(cells) == width ? sum_of(cells, arguments[1]) : -1;
        Py_DECREF(cells);
        if (size < 0)
            return answer(size);
        total += size;
    }
    return answer(total);
}

static PyMethodDef methods[] = {
    {"flat_sum", (PyCFunction)(void (*)(void))flat_sum, METH_FASTCALL, flat_doc},
    {"table_sum", (PyCFunction)(void (*)(void))table_sum, METH_FASTCALL, table_doc},
    {NULL, NULL, 0, NULL},
};

static Py_ssize_t
ask_of_new(PyObject *value)
{
    if (value == NULL)
        return -2;
    Py_ssize_t size = ask(value);
    Py_DECREF(value);
    return size;
}

static int
learn(PyObject *module)
{
    if (getsizeof_function == NULL) {
        PyObject *sys = PyImport_ImportModule("sys");
        if (sys == NULL)
            return -1;
        getsizeof_function = PyObject_GetAttrString(sys, "getsizeof");
        Py_DECREF(sys);
        data_name = PyUnicode_InternFromString("_data");
        if (getsizeof_function == NULL || data_name == NULL)
            return -1;
    }
    none_size = ask(Py_None);
    true_size = ask(Py_True);
    false_size = ask(Py_False);
    float_size = ask_of_new(PyFloat_FromDouble(1.0));
    zero_size = ask_of_new(PyLong_FromLong(0));
    one_digit_size = ask_of_new(PyLong_FromLong(1));
    two_digit_size = ask_of_new(PyLong_FromLong(ONE_DIGIT));
    bytes_size = ask_of_new(PyBytes_FromStringAndSize(NULL, 0));
    return PyErr_Occurred() ? -1 : 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, learn},
#if PY_VERSION_HEX >= 0x030C0000
    /* What it learned is static; elsewhere the pure sums serve. */
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "memwarden._native._sizes",
    .m_doc = "Sums of sys.getsizeof over flat values.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__sizes(void)
{
    return PyModuleDef_Init(&definition);
}
