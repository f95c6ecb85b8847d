/* The program that the tests run in containers: static, so that a root file system needs nothing else. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static void on_term(int signal) { (void)signal; _exit(7); }

static int cat(const char *path) {
    char buffer[4096];
    int fd = open(path, O_RDONLY);
    if (fd < 0) { perror(path); return 1; }
    for (ssize_t n; (n = read(fd, buffer, sizeof buffer)) > 0;) write(1, buffer, n);
    close(fd);
    return 0;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    const char *arg = argc > 2 ? argv[2] : "";
    if (!strcmp(what, "echo")) { printf("%s\n", arg); fflush(stdout); fprintf(stderr, "err %s\n", arg); return 0; }
    if (!strcmp(what, "exit")) return atoi(arg);
    if (!strcmp(what, "die")) { kill(getpid(), atoi(arg)); signal(atoi(arg), SIG_DFL); raise(atoi(arg)); abort(); }
    if (!strcmp(what, "cat")) return cat(arg);
    if (!strcmp(what, "copy")) { /* stdin to stdout, until its end */
        char buffer[65536];
        for (ssize_t n; (n = read(0, buffer, sizeof buffer)) > 0;) write(1, buffer, n);
        printf("end\n");
        return 5;
    }
    if (!strcmp(what, "size")) { /* of the terminal, once it has one */
        struct winsize size = {0};
        while (ioctl(0, TIOCGWINSZ, &size) == 0 && size.ws_row == 0) usleep(5000);
        printf("%d x %d on %s\n", size.ws_row, size.ws_col, ttyname(0) ? ttyname(0) : "none");
        return 0;
    }
    if (!strcmp(what, "flood")) { /* more than any pipe holds */
        char line[1024];
        memset(line, 'x', sizeof line);
        line[sizeof line - 1] = '\n';
        for (int left = atoi(arg); left > 0; left--) write(1, line, sizeof line);
        return 0;
    }
    if (!strcmp(what, "write")) {
        int fd = open(arg, O_WRONLY | O_CREAT, 0644);
        if (fd < 0) { perror(arg); return 1; }
        return write(fd, "written", 7) != 7;
    }
    if (!strcmp(what, "wait")) { /* until SIGTERM, exit 7; says so first */
        signal(SIGTERM, on_term);
        printf("ready\n");
        fflush(stdout);
        for (;;) pause();
    }
    if (!strcmp(what, "until")) { /* a file is there */
        while (access(arg, F_OK)) usleep(5000);
        return 3;
    }
    if (!strcmp(what, "spin")) for (volatile long n = 0;; n++) {}
    if (!strcmp(what, "eat")) { for (;;) memset(malloc(1 << 20), 1, 1 << 20); }
    if (!strcmp(what, "long")) {
        for (int left = atoi(arg); left > 0; left--) putchar('x');
        printf("\nend");
        return 0;
    }
    if (!strcmp(what, "orphan")) { /* leaves a child that holds the output open */
        if (fork() == 0) { setsid(); for (;;) pause(); }
        return 0;
    }
    if (!strcmp(what, "mount")) {
        mkdir(arg, 0755);
        if (mount("tmpfs", arg, "tmpfs", 0, NULL)) { perror("mount"); return 1; }
        signal(SIGTERM, on_term);
        printf("ready\n");
        fflush(stdout);
        for (;;) pause();
    }
    if (!strcmp(what, "me")) { /* who and where */
        char name[128] = "", cwd[256] = "";
        gethostname(name, sizeof name - 1);
        printf("uid=%d gid=%d pid=%d host=%s cwd=%s env=%s tty=%d\n", getuid(), getgid(), getpid(), name,
               getcwd(cwd, sizeof cwd - 1), getenv("WHARF") ? getenv("WHARF") : "", isatty(1));
        fflush(stdout);
        cat("/proc/self/status");
        printf("sethostname=%d unshare=%d\n", sethostname("other", 5), unshare(CLONE_NEWUSER));
        fflush(stdout);
        return cat("/proc/self/oom_score_adj");
    }
    if (!strcmp(what, "links")) { /* network links, by the kernel's own list */
        return cat("/proc/net/dev");
    }
    fprintf(stderr, "unknown %s\n", what);
    return 99;
}
