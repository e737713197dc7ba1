/* A libnvrtc.so.13 that compiles nothing, for tests: machine code is the source
   behind a line that begins like an ELF file. A source with `#error` is refused. */
#include <stdlib.h>
#include <string.h>

struct program { char* source; int num_headers; };
static int compiled;

int fake_compiled(void) { return compiled; }

unsigned nvrtcVersion(int* major, int* minor) { *major = 13; *minor = 0; return 0; }
unsigned nvrtcCreateProgram(struct program** made, const char* source, const char* name, int num_headers,
                            const char** headers, const char** header_names) {
    *made = malloc(sizeof **made);
    **made = (struct program){strdup(source), num_headers};
    for (int i = 0; i < num_headers; i++)
        if (!*headers[i] || !*header_names[i]) return 3;
    return *name ? 0 : 3;
}
unsigned nvrtcDestroyProgram(struct program** program) {
    free((*program)->source);
    free(*program);
    *program = NULL;
    return 0;
}
unsigned nvrtcCompileProgram(struct program* program, int num_options, const char** options) {
    __sync_fetch_and_add(&compiled, 1);
    int has_arch = 0;
    for (int i = 0; i < num_options; i++) has_arch |= !strncmp(options[i], "--gpu-architecture=sm_90", 24);
    return !has_arch || strstr(program->source, "#error") ? 6 : 0;
}
static const char text[] = "line 1: error: what the compiler says";
unsigned nvrtcGetProgramLogSize(struct program* program, size_t* bytes) { (void)program; *bytes = sizeof text; return 0; }
unsigned nvrtcGetProgramLog(struct program* program, char* log) { (void)program; memcpy(log, text, sizeof text); return 0; }
unsigned nvrtcGetCUBINSize(struct program* program, size_t* bytes) { *bytes = strlen(program->source) + 5; return 0; }
unsigned nvrtcGetCUBIN(struct program* program, char* code) {
    memcpy(code, "\x7f" "ELF\n", 5);
    memcpy(code + 5, program->source, strlen(program->source));
    return 0;
}
