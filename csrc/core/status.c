/* status.c: the status map and the thread-local message of the last failure. */
#include "gnn.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[512];
static _Thread_local gnn_status last_status = GNN_OK;

#define STATUS_TEXT(name, text, exception) text,
static const char *const texts[] = {GNN_STATUS_MAP(STATUS_TEXT)};

#define STATUS_EXCEPTION(name, text, exception) exception,
static const char *const exceptions[] = {GNN_STATUS_MAP(STATUS_EXCEPTION)};

gnn_status gnn_fail(gnn_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    last_status = status;
    return status;
}

const char *gnn_message(void) {
    return message;
}

gnn_status gnn_last_status(void) {
    return last_status;
}

const char *gnn_status_text(gnn_status status) {
    return (unsigned)status < GNN_STATUS_COUNT ? texts[status] : "unknown status";
}

const char *gnn_status_exception(gnn_status status) {
    return (unsigned)status < GNN_STATUS_COUNT ? exceptions[status] : "RuntimeError";
}

#define DTYPE_SIZE(name, bytes, text) bytes,
static const int64_t dtype_sizes[] = {GNN_DTYPE_MAP(DTYPE_SIZE)};

#define DTYPE_TEXT(name, bytes, text) text,
static const char *const dtype_texts[] = {GNN_DTYPE_MAP(DTYPE_TEXT)};

int64_t gnn_dtype_size(gnn_dtype dtype) {
    return (unsigned)dtype < GNN_DTYPE_COUNT ? dtype_sizes[dtype] : 0;
}

const char *gnn_dtype_text(gnn_dtype dtype) {
    return (unsigned)dtype < GNN_DTYPE_COUNT ? dtype_texts[dtype] : "unknown dtype";
}
