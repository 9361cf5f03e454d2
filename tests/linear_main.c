/* linear_main.c - linear_check HISTORY...: are histories of clients (tests/linear.h), taken together, linearizable?
 * Exit status: 0 yes; 1 no, the output says what can't be explained; 2 undecided, or a file that can't be read. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "linear.h"

int main(int argc, char **argv)
{
    struct linear_op *ops = NULL;
    size_t n = 0;
    if (argc < 2) {
        fprintf(stderr, "usage: linear_check HISTORY...\n");
        return 2;
    }
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "re");
        long line = f ? linear_read(f, &ops, &n) : -1;
        if (f)
            fclose(f);
        if (line) {
            fprintf(stderr, line > 0 ? "%s: line %ld can't be read\n" : "%s: can't be read\n", argv[i], line);
            free(ops);
            return 2;
        }
    }
    struct linear_report r;
    enum linear_verdict verdict = linear_check(ops, n, 0, &r);
    printf("%zu operations on %zu mailboxes, %zu uncertain, %llu steps: %s\n", r.ops, r.keys, r.uncertain, (unsigned long long)r.steps,
           verdict == LINEAR_OK ? "linearizable" : verdict == LINEAR_BAD ? "NOT linearizable" : "UNDECIDED");
    if (verdict != LINEAR_OK)
        printf("%s: %s\n", r.key, r.text);
    free(ops);
    return verdict == LINEAR_OK ? 0 : verdict == LINEAR_BAD ? 1 : 2;
}
