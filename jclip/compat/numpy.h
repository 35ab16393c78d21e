// Jittor 1.3.11 knows numpy 1. Where numpy is 2, this header is found before Jittor's own "pyjt/numpy.h", includes it,
// and replaces what numpy 2 has moved: https://numpy.org/devdocs/numpy_2_0_migration_guide.html#c-api-changes
#pragma once
#define PyArray_Size PyArray_Size_of_numpy1
#include_next "pyjt/numpy.h"
#undef PyArray_Size

namespace jittor {

// Return the size of an array in bytes. Jittor reads it from descr->elsize, where numpy 2 has something else; the number
// of the type is where it was.
inline int64 PyArray_Size(PyArray_Proxy* array) {
    int64 size = get_type_str(array).dsize();
    for (int i = 0; i < array->nd; i++) size *= array->dimensions[i];
    return size;
}

// Copy the elements of an array into another one; return 0, or -1 with a Python error set. In numpy's table of
// functions, PyArray_CopyInto was number 82, which is empty now; 50 does the same.
inline int copy_into(PyObject* to, PyObject* from) {
    return ((int (*)(PyObject*, PyObject*))PyArray_API[50])(to, from);
}
#define PyArray_CopyInto(to, from) copy_into(to, from)

// Set `value` to a numpy scalar that serves as an index. Jittor calls numpy with a descr of which only the number of the
// type is set; numpy 2 reads the rest of it, too.
inline void scalar_to_int(PyObject* scalar, int* value) {
    PyObjHolder number(PyNumber_Long(scalar));
    *value = (int)PyLong_AsLong(number.obj);
}
#define PyArray_CastScalarToCtype(scalar, value, descr) scalar_to_int(scalar, value)

}  // namespace jittor
