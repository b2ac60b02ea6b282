/**
 * HTML in which nothing that was measured, or said by another program, can become markup.
 *
 * @module
 */

/** Markup that may stand in a page as it is. */
export class Html {
  readonly text: string;
  constructor(text: string) {
    this.text = text;
  }
}

type Content = Html | string | number | undefined | readonly Content[];

/** Text as it stands in HTML, in an element or in a quoted attribute. */
export function escape(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

function textOf(content: Content): string {
  if (content instanceof Html) return content.text;
  if (typeof content === "object") return content.map(textOf).join("");
  return content === undefined ? "" : escape(String(content));
}

/** A template of markup: everything put into it is text, unless it is markup itself. */
export function markup(parts: TemplateStringsArray, ...contents: Content[]): Html {
  return new Html(parts.map((part, i) => part + textOf(contents[i])).join(""));
}

/** JSON for a `<script>` element, which nothing in it can end. */
export function scriptJson(value: unknown): Html {
  return new Html(
    JSON.stringify(value).replace(
      /[<\u2028\u2029]/g,
      (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
    ),
  );
}
