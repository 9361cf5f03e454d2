/* preload_fake_main.c - a program that uses preload_fake.c. Ends with 0 when nothing stopped it. */
int mupdate_connect(void);
int main(void) { return mupdate_connect(); }
