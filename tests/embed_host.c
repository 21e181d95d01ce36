// A host that embeds CPython as PythonKit does in Swift: it loads libpython, streams on a thread of its own
// and takes plain strings, integers, floats and lists back. docs/swift.md tells the story, test_embedding.py
// runs it.
//
//   embed_host SITE_PACKAGES      the folder russet is installed in
#include <Python.h>
#include <pthread.h>
#include <string.h>

static void expect(int ok, const char* what) {
  if (ok) return;
  if (Py_IsInitialized() && PyErr_Occurred()) PyErr_Print();
  fprintf(stderr, "embed_host: expected %s\n", what);
  exit(1);
}

// object.method(argument, max_tokens=20, temperature=temperature)
static PyObject* call(PyObject* object, const char* method, PyObject* argument, double temperature) {
  PyObject* function = PyObject_GetAttrString(object, method);
  expect(function != NULL, method);
  PyObject* arguments = PyTuple_Pack(1, argument);
  PyObject* options = Py_BuildValue("{s:i,s:d}", "max_tokens", 20, "temperature", temperature);
  PyObject* result = PyObject_Call(function, arguments, options);
  Py_DECREF(function), Py_DECREF(arguments), Py_DECREF(options);
  return result;
}

typedef struct {
  PyObject *model, *prompt;
  char text[4096];
  long tokens[20];
  int n_tokens, n_prompt_tokens, finished;
} Streamed;

// The body of a thread: takes the GIL for as long as it speaks Python; russet lets go of it while it
// computes.
static void* stream(void* data) {
  Streamed* s = data;
  const PyGILState_STATE gil = PyGILState_Ensure();
  PyObject* pieces = call(s->model, "stream", s->prompt, 0);
  expect(pieces && PyIter_Check(pieces), "stream() to give an iterator");
  for (PyObject* piece; (piece = PyIter_Next(pieces)); Py_DECREF(piece)) {
    PyObject* text = PyObject_GetAttrString(piece, "text");
    PyObject* token = PyObject_GetAttrString(piece, "token");
    PyObject* reason = PyObject_GetAttrString(piece, "finish_reason");
    PyObject* n_prompt = PyObject_GetAttrString(piece, "prompt_tokens");
    expect(text && PyUnicode_CheckExact(text), "text to be a str");
    expect(token && PyLong_CheckExact(token), "token to be an int");
    expect(reason && (reason == Py_None || PyUnicode_CheckExact(reason)),
           "finish_reason to be a str or None");
    expect(n_prompt && PyLong_CheckExact(n_prompt), "prompt_tokens to be an int");
    expect(!s->finished && s->n_tokens < 20, "no piece after the last");
    strncat(s->text, PyUnicode_AsUTF8(text), sizeof s->text - strlen(s->text) - 1);
    s->tokens[s->n_tokens++] = PyLong_AsLong(token);
    s->n_prompt_tokens = (int)PyLong_AsLong(n_prompt);
    s->finished = reason != Py_None;
    Py_DECREF(text), Py_DECREF(token), Py_DECREF(reason), Py_DECREF(n_prompt);
  }
  expect(!PyErr_Occurred() && s->finished, "the stream to end with a finish_reason");
  Py_DECREF(pieces);
  PyGILState_Release(gil);
  return NULL;
}

int main(int argc, char** argv) {
  expect(argc == 2, "the site-packages folder as argument");
  Py_Initialize();
  PyObject* site = PyImport_ImportModule("site");
  PyObject* added = site ? PyObject_CallMethod(site, "addsitedir", "s", argv[1]) : NULL;
  expect(added != NULL, "site.addsitedir to work");

  PyObject* russet = PyImport_ImportModule("russet");
  expect(russet != NULL, "russet to import");
  Streamed s = {.model = PyObject_CallMethod(russet, "load", NULL),
                .prompt = PyUnicode_FromString("Once upon a time")};
  expect(s.model != NULL, "the demo model to load");

  pthread_t thread;
  PyThreadState* main_state = PyEval_SaveThread();
  expect(pthread_create(&thread, NULL, stream, &s) == 0 && pthread_join(thread, NULL) == 0, "a thread");
  PyEval_RestoreThread(main_state);
  printf("streamed:%s\n", s.text);

  PyObject* text = call(s.model, "generate", s.prompt, 0);
  expect(text && PyUnicode_CheckExact(text), "generate() to give a str");
  expect(!strcmp(PyUnicode_AsUTF8(text), s.text), "generate() to give what stream() gave");

  PyObject* ids = call(s.model, "generate_tokens", s.prompt, 0);
  expect(ids && PyList_CheckExact(ids) && PyList_Size(ids) == s.n_tokens, "generate_tokens() to give a list");
  for (int i = 0; i < s.n_tokens; ++i) {
    PyObject* id = PyList_GetItem(ids, i);
    expect(PyLong_CheckExact(id) && PyLong_AsLong(id) == s.tokens[i], "the ids that stream() gave");
  }

  PyObject* array = PyObject_CallMethod(s.model, "logits", "O", ids);
  PyObject* logits = array ? PyObject_CallMethod(array, "tolist", NULL) : NULL;
  expect(logits && PyList_CheckExact(logits) && PyList_Size(logits) == s.n_tokens,
         "a list of logits per token");
  PyObject* row = PyList_GetItem(logits, 0);
  expect(PyList_CheckExact(row) && PyFloat_CheckExact(PyList_GetItem(row, 0)),
         "logits to be lists of floats");
  printf("logits: %d x %d\n", (int)PyList_Size(logits), (int)PyList_Size(row));

  PyObject* usage_error = PyObject_GetAttrString(russet, "UsageError");
  expect(usage_error != NULL, "russet.UsageError");
  expect(call(s.model, "generate", s.prompt, -1) == NULL, "temperature=-1 to be refused");
  expect(PyErr_ExceptionMatches(usage_error), "a UsageError");
  PyObject *type, *error, *trace;
  PyErr_Fetch(&type, &error, &trace);
  PyObject* message = PyObject_Str(error);
  printf("refused: %s\n", PyUnicode_AsUTF8(message));

  PyObject* owned[] = {site,  added,  russet, s.model, s.prompt, text,    ids,
                       array, logits, type,   error,   trace,    message, usage_error};
  for (size_t i = 0; i < sizeof owned / sizeof *owned; ++i) Py_XDECREF(owned[i]);
  expect(Py_FinalizeEx() == 0, "Python to end without an error");
  return 0;
}
