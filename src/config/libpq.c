/*
 * Reads connection strings and writes what libpq's PQconninfoParse makes of them.
 *
 * First it writes libpq's version and the names of all parameters, each followed by a line break, and
 * an empty line. Then, for each string: a 0 if it is refused; or a 1, for each parameter that is given
 * its name and value, each of the two after its length, and a length of 0. A length is 4 bytes, the
 * most significant first; the strings on standard input come after their lengths too.
 */
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int read_length(size_t *length)
{
	unsigned char bytes[4];

	if (fread(bytes, 1, sizeof bytes, stdin) != sizeof bytes)
		return 0;
	*length = (size_t) bytes[0] << 24 | (size_t) bytes[1] << 16 | (size_t) bytes[2] << 8 | bytes[3];
	return 1;
}

static void write_length(size_t length)
{
	putchar((int) (length >> 24 & 255));
	putchar((int) (length >> 16 & 255));
	putchar((int) (length >> 8 & 255));
	putchar((int) (length & 255));
}

static void write_text(const char *text)
{
	write_length(strlen(text));
	fputs(text, stdout);
}

static void write_names(void)
{
	PQconninfoOption *options = PQconninfoParse("", NULL);

	if (options == NULL)
		exit(1);
	printf("%d\n", PQlibVersion());
	for (PQconninfoOption *option = options; option->keyword != NULL; option++)
		printf("%s\n", option->keyword);
	printf("\n");
	PQconninfoFree(options);
}

static void write_parsed(const char *text)
{
	PQconninfoOption *options = PQconninfoParse(text, NULL);

	putchar(options != NULL);
	if (options == NULL)
		return;
	for (PQconninfoOption *option = options; option->keyword != NULL; option++)
	{
		if (option->val == NULL)
			continue;
		write_text(option->keyword);
		write_text(option->val);
	}
	write_length(0);
	PQconninfoFree(options);
}

int main(void)
{
	size_t		length;

	write_names();
	while (read_length(&length))
	{
		char	   *text = malloc(length + 1);

		if (text == NULL || fread(text, 1, length, stdin) != length)
			return 1;
		text[length] = '\0';
		write_parsed(text);
		free(text);
	}
	return fflush(stdout) == 0 ? 0 : 1;
}
